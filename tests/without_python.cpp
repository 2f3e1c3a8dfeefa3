// Runs TorchScript modules in a process without Python: backward() must raise, as torch has no derivatives here.
// usage: without_python LIBRARY MODULE…
#include <dlfcn.h>
#include <torch/script.h>

#include <iostream>

int main(int count, char** arguments) {
  TORCH_CHECK(dlopen(arguments[1], RTLD_NOW), dlerror());
  const at::Tensor one = at::ones({});
  for (int i = 2; i < count; ++i) {
    torch::jit::Module module = torch::jit::load(arguments[i]);
    const at::Tensor output = module.forward({one}).toTensor();
    std::string error;
    try {
      output.sum().backward();
    } catch (const std::exception& raised) {
      error = raised.what();
    }
    TORCH_CHECK(error.find("c10::InferenceMode") != std::string::npos, arguments[i], ": ", error);
    for (const at::Tensor& parameter : module.parameters()) TORCH_CHECK(!parameter.grad().defined());
    {
      torch::NoGradGuard guard;
      TORCH_CHECK(at::equal(module.forward({one}).toTensor(), output));
    }
    for (at::Tensor parameter : module.parameters()) parameter.set_requires_grad(false);
    TORCH_CHECK(!module.forward({one}).toTensor().requires_grad());
  }
  std::cout << count - 2;
}
