// The part of CUDA that the kernels need, on a CPU: the threads of a block are host threads, synchronised by barriers.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(threads)

using cudaStream_t = void*;
inline int cudaGetLastError() { return 0; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct Place {
    unsigned x;
};
inline thread_local Place threadIdx, blockIdx;
inline Place blockDim;

inline std::unique_ptr<std::barrier<>> block;
inline std::vector<std::unique_ptr<std::barrier<>>> warps;
inline float exchanged[1024];

inline void __syncthreads() { block->arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned mask, float x, int distance) {
    if (mask != 0xffffffffu) std::abort();
    auto& warp = *warps[threadIdx.x / 32];
    exchanged[threadIdx.x] = x;
    warp.arrive_and_wait();
    const float other = exchanged[threadIdx.x ^ distance];
    warp.arrive_and_wait();
    return other;
}

// kernel<<<blocks, threads>>>(arguments...)
template <typename Kernel, typename... Arguments>
void start(Kernel kernel, unsigned blocks, unsigned threads, Arguments... arguments) {
    if (threads % 32 || threads == 0 || threads > 1024) std::abort();
    blockDim.x = threads;
    block = std::make_unique<std::barrier<>>(threads);
    warps.clear();
    for (unsigned warp = 0; warp < threads / 32; ++warp) warps.push_back(std::make_unique<std::barrier<>>(32));
    std::vector<std::thread> team;
    for (unsigned thread = 0; thread < threads; ++thread)
        team.emplace_back([=] {
            threadIdx.x = thread;
            for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
                kernel(arguments...);
                __syncthreads();
            }
        });
    for (auto& one : team) one.join();
}
