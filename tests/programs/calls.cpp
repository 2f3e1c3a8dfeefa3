// Loads a compiled library of dcnzoo beside torch's, without Python, and compares the calls in a file with their results.
// tests/programs/calls.py writes the file. Usage: calls LIBRARY FILE
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>
#ifdef _WIN32
extern "C" __declspec(dllimport) void* __stdcall LoadLibraryA(const char*);
#else
#include <dlfcn.h>
void* LoadLibraryA(const char* name) { return dlopen(name, RTLD_NOW); }
#endif

using torch::stable::Tensor;
namespace abi = torch::stable::detail;

std::ifstream file;

template <typename T>
T read() {
  T value;
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

template <typename T>
std::vector<T> read_list() {
  std::vector<T> list(read<int64_t>());
  for (size_t i = 0; i < list.size(); ++i) list[i] = read<T>();
  return list;
}

std::string read_text() {
  const std::vector<char> text = read_list<char>();
  return {text.begin(), text.end()};
}

Tensor read_tensor() {
  const int32_t type = read<int32_t>();  // aoti_torch_dtype_*
  const std::vector<int64_t> sizes = read_list<int64_t>();
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t d = int64_t(sizes.size()) - 2; d >= 0; --d)
    strides[d] = strides[d + 1] * std::max<int64_t>(sizes[d + 1], 1);
  auto* data = new std::vector<char>(read_list<char>());  // lives as long as the process
  AtenTensorHandle tensor;
  aoti_torch_create_tensor_from_blob(data->data(), sizes.size(), sizes.data(), strides.data(), 0, type, 0, 0,
                                     &tensor);
  return Tensor(tensor);
}

StableIValue read_argument() {
  switch (read<char>()) {
    case 'T': return abi::from(read_tensor());
    case 't': return abi::from(std::optional<Tensor>(read_tensor()));
    case 'n': return abi::from(std::optional<Tensor>());
    case 'i': return abi::from(read<int64_t>());
    case 'I': return abi::from(read_list<int64_t>());
    case 'f': return abi::from(read<double>());
    case 'b': return abi::from(bool(read<char>()));
    default: {
      const std::vector<char> flags = read_list<char>();
      const auto* bools = reinterpret_cast<const bool*>(flags.data());
      return abi::from(torch::headeronly::HeaderOnlyArrayRef<bool>(bools, flags.size()));
    }
  }
}

template <typename T>
double difference(const Tensor& result, const Tensor& expected) {
  const T *a = result.const_data_ptr<T>(), *b = expected.const_data_ptr<T>();
  double most = 0, largest = 1e-30;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    largest = std::max(largest, std::abs(double(b[i])));
    most = std::max(most, a[i] == b[i] ? 0 : std::abs(double(a[i]) - double(b[i])));
    if (std::isnan(double(a[i])) != std::isnan(double(b[i]))) return INFINITY;
  }
  return most / largest;
}

double difference(Tensor result, const Tensor& expected) {
  if (result.numel() != expected.numel() || result.scalar_type() != expected.scalar_type()) return INFINITY;
  result = torch::stable::contiguous(result);
  if (expected.element_size() == 4) return difference<float>(result, expected);
  const bool integers = expected.scalar_type() == torch::headeronly::ScalarType::Long;
  return integers ? difference<int64_t>(result, expected) : difference<double>(result, expected);
}

int main(int, char** arguments) {
  if (!LoadLibraryA(arguments[1])) return std::printf("%s does not load\n", arguments[1]), 1;
  file.open(arguments[2], std::ios::binary);
  int wrong = 0, calls = 0, errors = 0;
  double most[2] = {0, 0};  // float32, float64
  for (std::string name; !(name = read_text()).empty(); ++calls) {
    std::vector<StableIValue> stack(read<int64_t>());
    for (StableIValue& value : stack) value = read_argument();
    const int64_t results = read<int64_t>();  // -1: the call is an error
    stack.resize(std::max<size_t>(stack.size(), 8));
    const bool failed = torch_call_dispatcher(name.c_str(), "", stack.data(), TORCH_ABI_VERSION) != 0;
    if (failed != (results < 0))
      ++wrong, std::printf("%s: %s\n", name.c_str(), failed ? "an error" : "no error");
    errors += failed;
    for (int64_t i = 0; i < results; ++i) {
      const Tensor expected = read_tensor();
      if (failed) continue;
      const bool wide = expected.element_size() == 8;
      const double error = difference(abi::to<Tensor>(stack[i]), expected);
      most[wide] = std::max(most[wide], error);
      if (!(error <= (wide ? 1e-12 : 1e-5))) ++wrong, std::printf("%s: differs by %g\n", name.c_str(), error);
    }
  }
  std::printf("%d calls, %d of them errors, %d wrong; differences of float32 %.1e, float64 %.1e\n", calls,
              errors, wrong, most[0], most[1]);
  return wrong || calls == 0;
}
