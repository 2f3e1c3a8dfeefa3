// The error message for a GPU that the library was not compiled for.
#pragma once

#include <string>
#include <vector>

namespace dcnzoo {

// gpu: 75 for sm_75; built: as in nvcc's __CUDA_ARCH_LIST__, 750 for sm_75.
inline std::string missing_architecture(const std::string& kernel, int gpu, const std::vector<int>& built) {
  std::string list;
  for (int each : built) list += (list.empty() ? "sm_" : ", sm_") + std::to_string(each / 10);
  return kernel + ": this GPU is sm_" + std::to_string(gpu) + ", the library was built for " + list +
         "; rebuild it: DCNZOO_CUDA_ARCHS=" + std::to_string(gpu) + " pip install -e . --no-build-isolation";
}

}  // namespace dcnzoo
