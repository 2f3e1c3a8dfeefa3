// Which instruction set the CPU kernels run on, chosen once at run time.
//
// A source named *_cpu_kernel.cpp is compiled once per capability, into a namespace of that name, and
// offers its functions as a table. It must not include torch or use non-inlined templates of the
// standard library: the linker keeps one copy of those, perhaps the one with AVX-512 in it.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace dcnzoo {

// The integer as wide as T, so that a vector of one goes with a vector of the other.
template <typename T>
using IntegerOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

enum class CpuCapability { DEFAULT, AVX2, AVX512, AVX512_BF16 };

// The best one that was compiled in and that this machine has, or what DCNZOO_CPU_CAPABILITY names
// (default, avx2, avx512, avx512_bf16); throws where that is unknown or not available here.
CpuCapability cpu_capability();
std::string cpu_capability_name();

// The kernels of a family, for each type that they compute in. T is float or double.
template <template <typename> class Kernels>
struct KernelTable {
  Kernels<float> of_float;
  Kernels<double> of_double;

  template <typename T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(double))
      return of_double;
    else
      return of_float;
  }
};

}  // namespace dcnzoo

#if defined(__x86_64__) || defined(_M_X64)
#define DCNZOO_HAS_X86_KERNELS 1
#endif

// Declares `table_type function()` in every capability's namespace and `function_dispatched()`, which
// calls the one that this machine runs.
#define DCNZOO_DECLARE_IN(capability, table_type, function) \
  namespace cpu_##capability {                              \
    const table_type& function();                           \
  }
#ifdef DCNZOO_HAS_X86_KERNELS
#define DCNZOO_DECLARE_KERNELS(table_type, function)                       \
  DCNZOO_DECLARE_IN(DEFAULT, table_type, function)                         \
  DCNZOO_DECLARE_IN(AVX2, table_type, function)                            \
  DCNZOO_DECLARE_IN(AVX512, table_type, function)                          \
  DCNZOO_DECLARE_IN(AVX512_BF16, table_type, function)                     \
  inline const table_type& function##_dispatched() {                       \
    switch (cpu_capability()) {                                            \
      case CpuCapability::AVX512_BF16: return cpu_AVX512_BF16::function(); \
      case CpuCapability::AVX512: return cpu_AVX512::function();           \
      case CpuCapability::AVX2: return cpu_AVX2::function();               \
      default: return cpu_DEFAULT::function();                             \
    }                                                                      \
  }
#else
#define DCNZOO_DECLARE_KERNELS(table_type, function) \
  DCNZOO_DECLARE_IN(DEFAULT, table_type, function)   \
  inline const table_type& function##_dispatched() { return cpu_DEFAULT::function(); }
#endif

// The namespace of the capability that is being compiled: cpu_AVX2, …
#define DCNZOO_CPU_NAMESPACE_(name) cpu_##name
#define DCNZOO_CPU_NAMESPACE__(name) DCNZOO_CPU_NAMESPACE_(name)
#define DCNZOO_CPU_NAMESPACE DCNZOO_CPU_NAMESPACE__(DCNZOO_CAPABILITY)
