// The instruction set of the CPU kernels, chosen once at run time.
//
// A source named *_cpu_kernel.cpp is compiled once per capability, into a namespace of that name, and exports a table
// of its functions. It must not include torch or use templates of the standard library that are not inlined: the linker
// keeps one copy of each, which may be the one compiled for AVX-512.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

namespace dcnzoo {

// The integer type as wide as T: vectors of both have the same number of lanes.
template <typename T>
using IntegerOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

enum class CpuCapability { DEFAULT, AVX2, AVX512, AVX512_BF16 };

// The best capability that is compiled in and that this CPU supports, or the value of DCNZOO_CPU_CAPABILITY (default,
// avx2, avx512, avx512_bf16). Throws if that value is unknown or not supported.
CpuCapability cpu_capability();
std::string cpu_capability_name();

// The kernels of an operator for each compute type T: float or double.
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

// Declares `table_type function()` in every capability's namespace and `function_dispatched()`, which calls the one for
// the chosen capability.
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
