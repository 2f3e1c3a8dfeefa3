// Reports torch's own message if a call into torch fails. Include this before any header of torch's stable ABI: their
// functions check calls with the macro that is redefined here.
#pragma once

#include <torch/headeronly/util/shim_utils.h>

#include <string>

#include "check.h"

// Exists since torch 2.13. Null in older versions, whose C interface returns only an error code and prints the message.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace dcnzoo {

// The message for older torch versions. A call that only allocates and copies has most likely run out of memory.
// call: its source text, such as torch_call_dispatcher("aten::new_empty", …).
inline std::string likely_message(const std::string& call) {
#ifdef USE_CUDA
  const std::string memory = "CUDA out of memory: ";  // as torch's own message starts
#else
  const std::string memory = "out of memory: ";
#endif
  const std::string failed = call.substr(0, call.find(", \"")) + " failed; torch's own message is on stderr";
  for (const char* name : {"empty", "new_zeros", "aten::contiguous", "aten::clone", "aten::to\""})
    if (call.find(name) != std::string::npos) return memory + failed;
  return failed;
}

[[noreturn]] inline void torch_call_failed(const char* call) {
  if (torch_exception_get_what_without_backtrace != nullptr)
    fail(torch_exception_get_what_without_backtrace());
  fail(likely_message(call));
}

}  // namespace dcnzoo

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)    \
  if ((call) != TORCH_SUCCESS) {        \
    ::dcnzoo::torch_call_failed(#call); \
  }
