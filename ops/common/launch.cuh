// Every CUDA launch goes through here: device guard, torch's current stream, 64-bit index, launch check.
#pragma once

#include "torch_errors.h"  // before the headers that it changes

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <limits>

#include "architectures.h"
#include "integers.h"
#include "tensor.h"

namespace dcnzoo {

// A grid-stride loop over [0, count): one launch covers any count.
#define DCNZOO_FOR_EACH(index, count)                                                   \
  for (int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < (count); \
       index += int64_t(gridDim.x) * blockDim.x)

constexpr int kThreads = 256;

inline unsigned blocks_for(int64_t count) {
  constexpr int64_t kMostBlocks = 1 << 20;
  return unsigned(std::clamp<int64_t>(ceil_div(count, kThreads), 1, kMostBlocks));
}

// The number of blocks of a kernel that loops over tiles.
inline unsigned blocks_for_tiles(int64_t tiles) {
  return unsigned(std::min<int64_t>(tiles, std::numeric_limits<int32_t>::max()));
}

// kernel<<<blocks, threads>>>(arguments...) on the device of `on` and torch's current stream.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, dim3 threads, const Tensor& on,
            Arguments... arguments) {
#ifdef __CUDACC__
  const torch::stable::accelerator::DeviceGuard guard(on.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, on.get_device_index());
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, on.get_device_index());
    fail(missing_architecture(name, 10 * major + minor, {__CUDA_ARCH_LIST__}));
  }
  check(error != cudaErrorInsufficientDriver, name, ": the CUDA library was built with CUDA ",
        CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10,
        ", which needs a newer driver; update the driver, or rebuild with the nvcc of the CUDA version that ",
        "torch uses: CUDA_HOME=... pip install -e . --no-build-isolation");
  check(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
#else  // without nvcc, tests run the kernels on the host (tests/cuda/emulation)
  (void)name, (void)on;
  emulate(blocks, threads, [&] { kernel(arguments...); });
#endif
}

}  // namespace dcnzoo
