// Argument checks that raise exactly the given message.
// STD_TORCH_CHECK would add the C++ function and the build machine's path before it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dcnzoo {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// "(2, 3, 5)", as Python prints a shape
template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace dcnzoo
