#include "cpu_capability.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>

#include "tensor.h"

namespace dcnzoo {
namespace {

#if defined(__aarch64__)
bool multiplies_bfloat16() {
#if defined(__linux__)
  constexpr unsigned long bf16 = 1 << 14;  // HWCAP2_BF16, which older headers do not define
  return getauxval(AT_HWCAP2) & bf16;
#elif defined(__APPLE__)
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value;
#else
  return false;
#endif
}
#endif

#if defined(__x86_64__)
// Not __builtin_cpu_supports, which does not accept "f16c" in all supported compilers.
bool converts_float16() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// The best that is compiled in and that this CPU supports
CpuCapability best() {
#if defined(__x86_64__)
  // Every flag of CPU_CAPABILITIES in setup.py. Virtual machines can mask each of them.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_float16();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuCapability::AVX512_BF16;
  if (avx512) return CpuCapability::AVX512;
  if (avx2) return CpuCapability::AVX2;
#elif defined(__aarch64__)
  if (multiplies_bfloat16()) return CpuCapability::NEON_BF16;
#endif
  return CpuCapability::DEFAULT;
}

// On Intel's CPUs, products of bfloat16 are slower than those of float: deform_conv takes 1.4 times as long on a Xeon of
// 2023.
CpuCapability fastest() {
#if defined(__x86_64__)
  if (best() == CpuCapability::AVX512_BF16 && __builtin_cpu_is("intel")) return CpuCapability::AVX512;
#endif
  return best();
}

#define DCNZOO_NAME(capability, ...) #capability,
constexpr const char* kNames[] = {DCNZOO_EACH_CAPABILITY(DCNZOO_NAME, )};
constexpr int kCount = sizeof(kNames) / sizeof(*kNames);

std::string name_of(int capability) {
  std::string name = kNames[capability];
  for (char& letter : name)
    if (letter >= 'A' && letter <= 'Z') letter += 'a' - 'A';
  return name;
}

CpuCapability choose() {
  const char* wish = std::getenv("DCNZOO_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return fastest();
  std::string known;
  for (int candidate = 0; candidate < kCount; ++candidate) {
    known += (candidate == 0 ? "" : candidate + 1 < kCount ? ", " : " or ") + name_of(candidate);
    if (wish != name_of(candidate)) continue;
    check(candidate <= int(best()), "DCNZOO_CPU_CAPABILITY: expected at most ", name_of(int(best())),
          ", the best of this machine, got ", wish);
    return CpuCapability(candidate);
  }
  fail("DCNZOO_CPU_CAPABILITY: expected ", known, ", got ", wish);
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose();
  return chosen;
}

std::string cpu_capability_name() { return name_of(int(cpu_capability())); }

}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) { m.def("_cpu_capability() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&dcnzoo::cpu_capability_name));
}
