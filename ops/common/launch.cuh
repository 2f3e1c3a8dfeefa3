// Every CUDA launch goes through here: 64-bit index, torch's current stream, launch check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "tensor.h"

namespace dcnzoo {

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

using DeviceGuard = torch::stable::accelerator::DeviceGuard;

// A grid-stride loop over [0, count): any count, one launch.
#define DCNZOO_FOR_EACH(index, count)                                                       \
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < (count);     \
       index += int64_t(gridDim.x) * blockDim.x)

constexpr int kThreads = 256;

inline unsigned blocks_for(int64_t count) {
  constexpr int64_t kMostBlocks = 1 << 20;
  return unsigned(std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kMostBlocks));
}

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, kernel, ": ", cudaGetErrorString(error),
        error == cudaErrorNoKernelImageForDevice
            ? "; rebuild with DCNZOO_CUDA_ARCHS set to this GPU's architecture"
            : "");
}

}  // namespace dcnzoo
