#include "cpu_capability.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(DCNZOO_WITH_AMX)
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

#include <algorithm>
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

#if defined(DCNZOO_TILES)  // emulated
bool has_tiles() { return true; }
std::string ask_for_tiles() { return ""; }
#elif defined(DCNZOO_WITH_AMX)
bool has_tiles() {
  constexpr unsigned tile = 1 << 24, bfloat16 = 1 << 22;  // AMX-TILE, AMX-BF16
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & tile) && (edx & bfloat16);
}

// Linux gives a thread the memory for tiles only if its process has asked for it. Returns why it refuses, or an empty text.
std::string ask_for_tiles() {
  constexpr int request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM, which older headers do not define
  constexpr int tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? "" : std::strerror(errno);
}
#endif

// The best vector capability that is compiled in and that this CPU supports
CpuCapability best_of_vectors() {
#if defined(__x86_64__)
  // Every flag of CPU_CAPABILITIES in setup.py. Virtual machines can mask each of them.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_float16();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bfloat16) return CpuCapability::AVX512_BF16;
  if (avx512) return CpuCapability::AVX512;
  if (avx2) return CpuCapability::AVX2;
#elif defined(__aarch64__)
  if (multiplies_bfloat16()) return CpuCapability::NEON_BF16;
#endif
  return CpuCapability::DEFAULT;
}

CpuCapability best() {
  const CpuCapability vectors = best_of_vectors();
#if defined(DCNZOO_WITH_AMX)
  if (vectors >= CpuCapability::DCNZOO_WITH_AMX && has_tiles()) return CpuCapability::AMX_BF16;
#endif
  return vectors;
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

struct Choice {
  CpuCapability capability;
  std::string refusal;  // why the system refuses tiles
};

Choice fastest() {
#if defined(DCNZOO_WITH_AMX) && !defined(DCNZOO_TILES)
  if (best() == CpuCapability::AMX_BF16) {
    const std::string refusal = ask_for_tiles();
    return {refusal.empty() ? CpuCapability::AMX_BF16 : CpuCapability::AVX512, refusal};
  }
#endif
  const CpuCapability most = best_of_vectors();
#if defined(__x86_64__)
  // On Intel's CPUs, vector products of bfloat16 are slower than those of float: deform_conv takes 1.4 times as long on a Xeon
  // of 2023.
  if (most == CpuCapability::AVX512_BF16 && __builtin_cpu_is("intel")) return {CpuCapability::AVX512, ""};
#endif
  return {most, ""};
}

Choice choose() {
  const char* wish = std::getenv("DCNZOO_CPU_CAPABILITY");
  if (wish == nullptr || *wish == '\0') return fastest();
  const int most = int(best());
  std::string known;
  for (int candidate = 0; candidate < kCount; ++candidate) {
    known += (candidate == 0 ? "" : candidate + 1 < kCount ? ", " : " or ") + name_of(candidate);
    if (wish != name_of(candidate)) continue;
    check(candidate <= most, "DCNZOO_CPU_CAPABILITY: expected at most ", name_of(most),
          ", the best of this machine, got ", wish);
#if defined(DCNZOO_WITH_AMX)
    if (CpuCapability(candidate) == CpuCapability::AMX_BF16) {
      const std::string refusal = ask_for_tiles();
      check(refusal.empty(), "DCNZOO_CPU_CAPABILITY: expected at most ", name_of(most - 1),
            ", because the system refuses AMX (", refusal, "), got ", wish);
    }
#endif
    return {CpuCapability(candidate), ""};
  }
  fail("DCNZOO_CPU_CAPABILITY: expected ", known, ", got ", wish);
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

CpuCapability cpu_capability() { return choice().capability; }

CpuCapability vector_capability() {
#if defined(DCNZOO_WITH_AMX)
  static const CpuCapability most = std::min(best_of_vectors(), CpuCapability::AVX512);
  if (cpu_capability() == CpuCapability::AMX_BF16) return most;
#endif
  return cpu_capability();
}

std::string cpu_capability_name() { return name_of(int(cpu_capability())); }

std::string amx_refusal() { return choice().refusal; }

}  // namespace dcnzoo

STABLE_TORCH_LIBRARY_FRAGMENT(dcnzoo, m) {
  m.def("_cpu_capability() -> str");
  m.def("_amx_refusal() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(dcnzoo, CompositeExplicitAutograd, m) {
  m.impl("_cpu_capability", TORCH_BOX(&dcnzoo::cpu_capability_name));
  m.impl("_amx_refusal", TORCH_BOX(&dcnzoo::amx_refusal));
}
