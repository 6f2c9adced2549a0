// The rms norm of `kernels/norm.py` in CUDA C++, with everything that Triton does for us by hand.
//
//     in norm.py                          here
//     a program, tl.program_id(0)         a block, blockIdx.x: up to 256 threads on one processor of the GPU
//     num_warps=4                         threads in warps of 32, which run in lockstep; the launcher chooses how many
//     x, a block of elements              x[i].at[j], the 8 or 32 elements of it that this thread holds in registers
//     tl.arange(0, BLOCK_D)               i * blockDim.x + threadIdx.x: the packs of this thread
//     tl.load(..., mask=column < width)   a pack of 16 bytes, one instruction, if it lies within the row
//     tl.sum(x * x, 1)                    block_sum: shuffles within a warp, shared memory between warps
//     tl.constexpr                        template parameters: a kernel is compiled for each type, pack and width
//
// The formulas and the bytes are those of norm.py: a row is read once, and stays in registers until it is written.
// This file needs only CUDA's own headers. `norm.py` calls the functions at its end with the pointers of tensors.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <initializer_list>

constexpr int WARP = 32;
// Maximum per block. More warps would hide more memory latency, but would share the same registers (65,536 on a
// processor); 256 threads may have 255 each, and nothing is spilled to memory.
constexpr int THREADS = 256;

// The data of one load. With an alignment of 16 bytes the compiler emits one instruction (LDG.128) instead of eight, and
// a warp reads 512 adjacent bytes. Triton derives the same from the divisibility of its arguments.
template <typename T, int PACK>
struct alignas(sizeof(T) * PACK) Pack {
    T at[PACK];
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16(x); }

// tl.sum over a row. A thread cannot read another's registers, but a warp can exchange them: after five exchanges, at
// distances 16, 8, 4, 2 and 1, each of 32 threads has the sum of all. Warps communicate through shared memory, a
// scratchpad of the processor. All threads add up the warps in the same order, so results are bit for bit the same.
__device__ inline float block_sum(float x, float* of_warps) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    __syncthreads();  // no thread still reads the previous sum
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();  // all warps have written
    float sum = 0.0f;
    for (int warp = 0; warp < int(blockDim.x) / WARP; ++warp) sum += of_warps[warp];
    return sum;
}

// A block has one row. Triton's takes several narrow rows; here some idle threads are simpler.
template <typename T, int PACK, int HELD>
__global__ void __launch_bounds__(THREADS)
    forward_kernel(const T* hidden, const T* weight, T* out, float* inverse, int width, float eps) {
    __shared__ float of_warps[THREADS / WARP];
    const int64_t row = blockIdx.x;  // 64 bits: row * width may exceed 2^31
    const auto* packs = reinterpret_cast<const Pack<T, PACK>*>(hidden + row * width);
    const auto* gains = reinterpret_cast<const Pack<T, PACK>*>(weight);
    auto* written = reinterpret_cast<Pack<T, PACK>*>(out + row * width);

    Pack<T, PACK> x[HELD / PACK];
    float squares = 0.0f;
#pragma unroll  // x is in registers only if every index into it is known at compile time
    for (int i = 0; i < HELD / PACK; ++i) {
        const int place = i * blockDim.x + threadIdx.x;
        if (place * PACK < width) {
            x[i] = packs[place];
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

// As in norm.py a block loops over a stripe of rows and sums the gradient of the weight in registers. It writes one sum
// per column; torch adds up the stripes. Atomic additions would give different bits in every run.
template <typename T, int PACK, int HELD>
__global__ void __launch_bounds__(THREADS)
    backward_kernel(const T* dout, const T* hidden, const T* weight, const float* inverse, T* dhidden,
                    float* weight_sums, int64_t rows, int width, int64_t stripe) {
    __shared__ float of_warps[THREADS / WARP];
    const auto* gains = reinterpret_cast<const Pack<T, PACK>*>(weight);
    float weight_sum[HELD] = {};
    const int64_t first = blockIdx.x * stripe;
    for (int64_t row = first; row < first + stripe && row < rows; ++row) {
        const auto* dys = reinterpret_cast<const Pack<T, PACK>*>(dout + row * width);
        const auto* packs = reinterpret_cast<const Pack<T, PACK>*>(hidden + row * width);
        auto* written = reinterpret_cast<Pack<T, PACK>*>(dhidden + row * width);
        const float scale = inverse[row];
        Pack<T, PACK> dy[HELD / PACK], x[HELD / PACK];
        float along = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD / PACK; ++i) {
            const int place = i * blockDim.x + threadIdx.x;
            if (place * PACK < width) {
                dy[i] = dys[place];
                x[i] = packs[place];
                const Pack<T, PACK> gain = gains[place];  // reloaded per row, from the cache: registers are scarce
                for (int j = 0; j < PACK; ++j) {
                    const float normed = wide(x[i].at[j]) * scale;
                    weight_sum[i * PACK + j] += wide(dy[i].at[j]) * normed;
                    along += wide(dy[i].at[j]) * wide(gain.at[j]) * normed;
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
                    const float dnormed = wide(dy[i].at[j]) * wide(gain.at[j]);
                    narrow((dnormed - wide(x[i].at[j]) * scale * along) * scale, dx.at[j]);
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

// The launchers. Triton compiles a kernel for new constants on demand; here all combinations are written out.

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

// The fewest elements per thread that fit the row, and no more warps than have elements.
template <typename T, int PACK, typename Job>
int by_width(const Job& job) {
    const auto threads = [&](int held) { return ((job.width + held - 1) / held + WARP - 1) / WARP * WARP; };
    if (job.width <= 8 * THREADS) job.template launch<T, PACK, 8>(threads(8));
    else job.template launch<T, PACK, 32>(threads(32));
    return cudaGetLastError();
}

// Rows of a multiple of 16 bytes are read in packs; other rows would not all be aligned.
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

// Called by `norm.py`, for a width of at most 32 * THREADS; returns 0 or a CUDA error code.

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
