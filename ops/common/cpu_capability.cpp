#include "cpu_capability.h"

#include <cstdlib>

#include "tensor.h"

namespace dcnzoo {
namespace {

CpuCapability best() {
#ifdef DCNZOO_HAS_X86_KERNELS
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuCapability::AVX512_BF16;
  if (avx512) return CpuCapability::AVX512;
  if (avx2) return CpuCapability::AVX2;
#endif
  return CpuCapability::DEFAULT;
}

const char* name_of(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::AVX512_BF16: return "avx512_bf16";
    case CpuCapability::AVX512: return "avx512";
    case CpuCapability::AVX2: return "avx2";
    default: return "default";
  }
}

CpuCapability choose() {
  const char* wish = std::getenv("DCNZOO_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return best();
  for (CpuCapability candidate :
       {CpuCapability::DEFAULT, CpuCapability::AVX2, CpuCapability::AVX512, CpuCapability::AVX512_BF16}) {
    if (std::string(wish) != name_of(candidate)) continue;
    check(candidate <= best(), "DCNZOO_CPU_CAPABILITY: expected at most ", name_of(best()),
          ", the best of this machine, got ", wish);
    return candidate;
  }
  fail("DCNZOO_CPU_CAPABILITY: expected default, avx2, avx512 or avx512_bf16, got ", wish);
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

std::string cpu_capability_name() { return name_of(cpu_capability()); }

}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) { m.def("_cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&dcnzoo::cpu_capability_name));
}
