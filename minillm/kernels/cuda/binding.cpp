// Passes torch's tensors to the kernels of `norm.cu`, which take pointers. `norm.py` has checked and packed them.

#include <torch/extension.h>

extern "C" int rms_norm_forward(const void* hidden, const void* weight, void* out, float* inverse, int64_t rows,
                                int width, float eps, bool half, void* stream);
extern "C" int rms_norm_backward(const void* dout, const void* hidden, const void* weight, const float* inverse,
                                 void* dhidden, float* weight_sums, int64_t rows, int64_t stripe, int64_t blocks,
                                 int width, bool half, void* stream);

namespace {

bool half(const at::Tensor& tensor) { return tensor.scalar_type() == at::kBFloat16; }

void forward(at::Tensor hidden, at::Tensor weight, at::Tensor out, at::Tensor inverse, double eps, int64_t stream) {
    const int error =
        rms_norm_forward(hidden.data_ptr(), weight.data_ptr(), out.data_ptr(), inverse.data_ptr<float>(),
                         inverse.numel(), weight.numel(), eps, half(hidden), reinterpret_cast<void*>(stream));
    TORCH_CHECK(error == 0, "CUDA error ", error, " in the rms norm's forward pass");
}

void backward(at::Tensor dout, at::Tensor hidden, at::Tensor weight, at::Tensor inverse, at::Tensor dhidden,
              at::Tensor weight_sums, int64_t stripe, int64_t stream) {
    const int error =
        rms_norm_backward(dout.data_ptr(), hidden.data_ptr(), weight.data_ptr(), inverse.data_ptr<float>(),
                          dhidden.data_ptr(), weight_sums.data_ptr<float>(), inverse.numel(), stripe,
                          weight_sums.size(0), weight.numel(), half(hidden), reinterpret_cast<void*>(stream));
    TORCH_CHECK(error == 0, "CUDA error ", error, " in the rms norm's backward pass");
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    module.def("forward", &forward);
    module.def("backward", &backward);
}
