// The rms norm in CUDA C++: `kernels/norm.py` once more, with everything by hand that Triton does for us.
//
//     in norm.py                          here
//     a program, tl.program_id(0)         a block, blockIdx.x: up to 256 threads on one processor of the GPU
//     num_warps=4                         threads in warps of 32, which run in step; how many is the launcher's choice
//     x, a block of numbers               x[i].at[j], the 8 or 32 numbers of it that this thread holds in registers
//     tl.arange(0, BLOCK_D)               i * blockDim.x + threadIdx.x: who holds which of them
//     tl.load(..., mask=column < width)   a pack of 16 bytes, one instruction, if it lies within the row
//     tl.sum(x * x, 1)                    block_sum: shuffles within a warp, shared memory between warps
//     tl.constexpr                        template parameters: a kernel is compiled for each type, pack and width
//
// The formulas and the bytes are those of norm.py: a row is read once, and stays in registers until it is written.
// Types apart, only CUDA's own headers are needed; `binding.cpp` is what torch needs of it.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <initializer_list>

constexpr int WARP = 32;
// Of a block, at most. More warps would hide more of memory's latency, but the same registers (65,536 on a processor)
// would have to do for them; 256 threads may have 255 each, and nothing is spilled to memory.
constexpr int THREADS = 256;

// What one instruction moves. With an alignment of 16 bytes the compiler makes one load of it (LDG.128) rather than
// eight, and a warp reads 512 bytes that lie side by side. Triton finds the same by the divisibility of its arguments.
template <typename T, int PACK>
struct alignas(sizeof(T) * PACK) Pack {
    T at[PACK];
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }

// tl.sum over a row. A thread sees no other's registers, but a warp can exchange them: after five exchanges, at
// distances 16, 8, 4, 2 and 1, each of 32 threads has the sum of all. Warps meet in shared memory, a scratchpad of the
// processor. Everyone adds up the warps in the same order: all get the same bits, and every run gets them again.
__device__ inline float block_sum(float x, float* of_warps) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    __syncthreads();  // nobody still reads the sum before this one
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();  // everybody has written
    float sum = 0.0f;
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp) sum += of_warps[warp];
    return sum;
}

// A block has one row, unlike Triton's, which has several narrow ones: here idle threads are the smaller evil.
template <typename T, int PACK, int HELD>
__global__ void __launch_bounds__(THREADS)
    forward_kernel(const T* hidden, const T* weight, T* out, float* inverse, int width, float eps) {
    __shared__ float of_warps[THREADS / WARP];
    const int64_t row = blockIdx.x;  // 64 bits: row * width may exceed 2^31
    const auto* read = reinterpret_cast<const Pack<T, PACK>*>(hidden + row * width);
    const auto* gains = reinterpret_cast<const Pack<T, PACK>*>(weight);
    auto* written = reinterpret_cast<Pack<T, PACK>*>(out + row * width);

    Pack<T, PACK> x[HELD / PACK];
    float squares = 0.0f;
#pragma unroll  // x is in registers only if every index into it is known when this is compiled
    for (int i = 0; i < HELD / PACK; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place * PACK < width) {
            x[i] = read[place];
            for (int j = 0; j < PACK; ++j) squares += wide(x[i].at[j]) * wide(x[i].at[j]);
        }
    }
    const float scale = rsqrtf(block_sum(squares, of_warps) / width + eps);
    if (threadIdx.x == 0) inverse[row] = scale;
#pragma unroll
    for (int i = 0; i < HELD / PACK; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place * PACK < width) {
            const Pack<T, PACK> gain = gains[place];
            Pack<T, PACK> y;
            for (int j = 0; j < PACK; ++j) narrow(wide(x[i].at[j]) * scale * wide(gain.at[j]), y.at[j]);
            written[place] = y;
        }
    }
}

// As in norm.py a block walks down a stripe of rows and keeps, in registers, the weight's slope over them. It leaves
// one sum a column; torch adds up the stripes. An atomic addition instead would give other bits in every run.
template <typename T, int PACK, int HELD>
__global__ void __launch_bounds__(THREADS)
    backward_kernel(const T* dout, const T* hidden, const T* weight, const float* inverse, T* dhidden,
                    float* weight_sums, int64_t rows, int width, int64_t stripe) {
    __shared__ float of_warps[THREADS / WARP];
    const auto* gains = reinterpret_cast<const Pack<T, PACK>*>(weight);
    float weight_sum[HELD] = {};
    const int64_t first = blockIdx.x * stripe;
    for (int64_t row = first; row < first + stripe && row < rows; ++row) {
        const auto* slopes = reinterpret_cast<const Pack<T, PACK>*>(dout + row * width);
        const auto* read = reinterpret_cast<const Pack<T, PACK>*>(hidden + row * width);
        auto* written = reinterpret_cast<Pack<T, PACK>*>(dhidden + row * width);
        const float scale = inverse[row];
        Pack<T, PACK> slope[HELD / PACK], x[HELD / PACK];
        float along = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD / PACK; ++i) {
            const int place = i * blockDim.x + threadIdx.x;
            if (place * PACK < width) {
                slope[i] = slopes[place];
                x[i] = read[place];
                const Pack<T, PACK> gain = gains[place];  // each row reads it again, from the cache: registers are dear
                for (int j = 0; j < PACK; ++j) {
                    const float normed = wide(x[i].at[j]) * scale;
                    weight_sum[i * PACK + j] += wide(slope[i].at[j]) * normed;
                    along += wide(slope[i].at[j]) * wide(gain.at[j]) * normed;
                }
            }
        }
        along = block_sum(along, of_warps) / width;
#pragma unroll
        for (int i = 0; i < HELD / PACK; ++i) {
            const int place = i * blockDim.x + threadIdx.x;
            if (place * PACK < width) {
                const Pack<T, PACK> gain = gains[place];
                Pack<T, PACK> dx;
                for (int j = 0; j < PACK; ++j) {
                    const float through = wide(slope[i].at[j]) * wide(gain.at[j]);
                    narrow((through - wide(x[i].at[j]) * scale * along) * scale, dx.at[j]);
                }
                written[place] = dx;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        const int column = (i / PACK * blockDim.x + threadIdx.x) * PACK + i % PACK;
        if (column < width) weight_sums[int64_t(blockIdx.x) * width + column] = weight_sum[i];
    }
}

// The launchers. Triton compiles a kernel when it meets new constants; here those that may be met are written out.

struct Forward {
    const void *hidden, *weight;
    void* out;
    float* inverse;
    int64_t rows;
    int width;
    float eps;
    cudaStream_t stream;

    template <typename T, int PACK, int HELD>
    void launch(int threads) const {
        forward_kernel<T, PACK, HELD><<<rows, threads, 0, stream>>>(
            static_cast<const T*>(hidden), static_cast<const T*>(weight), static_cast<T*>(out), inverse, width, eps);
    }
};

struct Backward {
    const void *dout, *hidden, *weight;
    const float* inverse;
    void* dhidden;
    float* weight_sums;
    int64_t rows, stripe, blocks;
    int width;
    cudaStream_t stream;

    template <typename T, int PACK, int HELD>
    void launch(int threads) const {
        backward_kernel<T, PACK, HELD><<<blocks, threads, 0, stream>>>(
            static_cast<const T*>(dout), static_cast<const T*>(hidden), static_cast<const T*>(weight), inverse,
            static_cast<T*>(dhidden), weight_sums, rows, width, stripe);
    }
};

// So few numbers a thread that the row just fits, and no more warps than have some to hold.
template <typename T, int PACK, typename Job>
int by_width(const Job& job) {
    const auto threads = [&](int held) { return ((job.width + held - 1) / held + WARP - 1) / WARP * WARP; };
    if (job.width <= 8 * THREADS) job.template launch<T, PACK, 8>(threads(8));
    else job.template launch<T, PACK, 32>(threads(32));
    return cudaGetLastError();
}

// Rows of a multiple of 16 bytes are read in packs; others would not all begin where a pack may.
template <typename Job>
int by_type(const Job& job, bool half, bool aligned) {
    if (half) return aligned ? by_width<__nv_bfloat16, 8>(job) : by_width<__nv_bfloat16, 1>(job);
    return aligned ? by_width<float, 4>(job) : by_width<float, 1>(job);
}

bool aligned(int width, bool half, std::initializer_list<const void*> pointers) {
    bool all = width % (half ? 8 : 4) == 0;
    for (const void* pointer : pointers) all = all && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    return all;
}

// What the binding calls, at most 32 * THREADS numbers wide; 0, or one of CUDA's errors.

extern "C" int rms_norm_forward(const void* hidden, const void* weight, void* out, float* inverse, int64_t rows,
                                int width, float eps, bool half, void* stream) {
    const Forward job{hidden, weight, out, inverse, rows, width, eps, static_cast<cudaStream_t>(stream)};
    return by_type(job, half, aligned(width, half, {hidden, weight, out}));
}

extern "C" int rms_norm_backward(const void* dout, const void* hidden, const void* weight, const float* inverse,
                                 void* dhidden, float* weight_sums, int64_t rows, int64_t stripe, int64_t blocks,
                                 int width, bool half, void* stream) {
    const Backward job{dout, hidden, weight, inverse, dhidden, weight_sums, rows, stripe, blocks, width,
                       static_cast<cudaStream_t>(stream)};
    return by_type(job, half, aligned(width, half, {dout, hidden, weight, dhidden}));
}
