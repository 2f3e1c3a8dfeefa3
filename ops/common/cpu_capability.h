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

// The capabilities that setup.py compiles for this architecture, the best one last. Not every compiler supports AMX, which
// multiplies matrices; only deform_conv has kernels for it. DCNZOO_WITH_AMX names the lowest capability of CPUs that run them.
#if defined(__x86_64__)
#define DCNZOO_EACH_VECTOR_CAPABILITY(X, ...) \
  X(DEFAULT, __VA_ARGS__) X(AVX2, __VA_ARGS__) X(AVX512, __VA_ARGS__) X(AVX512_BF16, __VA_ARGS__)
#elif defined(__aarch64__)
#define DCNZOO_EACH_VECTOR_CAPABILITY(X, ...) X(DEFAULT, __VA_ARGS__) X(NEON_BF16, __VA_ARGS__)
#else
#define DCNZOO_EACH_VECTOR_CAPABILITY(X, ...) X(DEFAULT, __VA_ARGS__)
#endif
#if defined(DCNZOO_WITH_AMX)
#define DCNZOO_EACH_CAPABILITY(X, ...) DCNZOO_EACH_VECTOR_CAPABILITY(X, __VA_ARGS__) X(AMX_BF16, __VA_ARGS__)
#else
#define DCNZOO_EACH_CAPABILITY DCNZOO_EACH_VECTOR_CAPABILITY
#endif

#define DCNZOO_ENUMERATOR(capability, ...) capability,
enum class CpuCapability { DCNZOO_EACH_CAPABILITY(DCNZOO_ENUMERATOR, ) };

// The fastest capability that is compiled in and that this CPU and the system support, or the value of DCNZOO_CPU_CAPABILITY
// (default, avx2, …). Throws if that value is unknown or not supported.
CpuCapability cpu_capability();
std::string cpu_capability_name();

// The capability for operators that have no kernels for AMX: the fastest one for vectors.
CpuCapability vector_capability();

// The kernels of an operator for each compute type T: float or double.
template <template <typename...> class Kernels>
struct KernelTable {
  Kernels<float> of_float;
  Kernels<double> of_double;

  template <typename T>
  const Kernels<T>& of() const {
    if constexpr (std::is_same_v<T, double>)
      return of_double;
    else
      return of_float;
  }
};

using BFloat16Bits = uint16_t;

// The same with kernels for each storage type S of the maps: T or bfloat16.
template <template <typename...> class Kernels>
struct StoredKernelTable : KernelTable<Kernels> {
  Kernels<float, BFloat16Bits> of_bfloat16;

  template <typename T, typename S>
  const auto& of() const {
    if constexpr (std::is_same_v<S, BFloat16Bits>)
      return of_bfloat16;
    else
      return KernelTable<Kernels>::template of<T>();
  }
};

}  // namespace dcnzoo

// Declares `table_type function()` in every capability's namespace and `function_dispatched()`, which calls the one for
// the chosen capability.
#define DCNZOO_DECLARE_IN(capability, table_type, function) \
  namespace cpu_##capability {                              \
    const table_type& function();                           \
  }
#define DCNZOO_CASE(capability, function) \
  case CpuCapability::capability: return cpu_##capability::function();
#define DCNZOO_DECLARE_KERNELS_FOR(each, chosen, table_type, function)                             \
  each(DCNZOO_DECLARE_IN, table_type, function) inline const table_type& function##_dispatched() { \
    switch (chosen()) { each(DCNZOO_CASE, function) default : break; }                             \
    return cpu_DEFAULT::function();                                                                \
  }
#define DCNZOO_DECLARE_KERNELS(table_type, function) \
  DCNZOO_DECLARE_KERNELS_FOR(DCNZOO_EACH_VECTOR_CAPABILITY, vector_capability, table_type, function)
#define DCNZOO_DECLARE_MATRIX_KERNELS(table_type, function) \
  DCNZOO_DECLARE_KERNELS_FOR(DCNZOO_EACH_CAPABILITY, cpu_capability, table_type, function)

// The kernels of double and float. For double, AVX-512 uses the kernels of AVX2, which saves a sixth of the time to
// compile the library. For float, AMX uses the kernels of AVX-512.
#if defined(__AVX512F__)
#define DCNZOO_DOUBLE_KERNELS(function, ...) cpu_AVX2::function().of_double
#else
#define DCNZOO_DOUBLE_KERNELS(function, ...) __VA_ARGS__
#endif
#if defined(__AMX_BF16__) && defined(__AVX512F__)
#define DCNZOO_FLOAT_KERNELS(function, ...) cpu_AVX512::function().of_float
#else
#define DCNZOO_FLOAT_KERNELS(function, ...) __VA_ARGS__
#endif

// The namespace of the capability that is being compiled: cpu_AVX2, …
#define DCNZOO_CPU_NAMESPACE_(name) cpu_##name
#define DCNZOO_CPU_NAMESPACE__(name) DCNZOO_CPU_NAMESPACE_(name)
#define DCNZOO_CPU_NAMESPACE DCNZOO_CPU_NAMESPACE__(DCNZOO_CAPABILITY)
