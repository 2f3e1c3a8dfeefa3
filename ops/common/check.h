// Argument checks that raise exactly the given message.
// STD_TORCH_CHECK would add the C++ function and the build machine's path before it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <utility>

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

// Sizes as Python prints a shape, "(2, 3, 5)". The text is made only for a message that is raised: making it takes longer
// than all checks of a call.
template <typename Sizes>
struct ShapeText {
  Sizes sizes;
  friend std::ostream& operator<<(std::ostream& text, const ShapeText& shape) {
    text << '(';
    for (size_t i = 0; i < shape.sizes.size(); ++i) text << (i ? ", " : "") << shape.sizes[i];
    return text << (shape.sizes.size() == 1 ? ",)" : ")");
  }
};

template <typename Sizes>
ShapeText<Sizes> shape_text(Sizes sizes) {
  return {std::move(sizes)};
}

}  // namespace dcnzoo
