"""The kernels' replacement for division, against division."""

from tests.cuda.conftest import run_program

PROGRAM = """
#include <cstdlib>
#include <limits>
#include <random>
#include "common/integers.h"

std::mt19937_64 generator;

template <typename Int>
Int any() {  // of any number of bits
  return Int(generator() & uint64_t(std::numeric_limits<Int>::max())) >> generator() % (8 * sizeof(Int) - 1);
}

template <typename Int>
void test(Int divisor) {
  constexpr Int most = std::numeric_limits<Int>::max();
  const dcnzoo::Divisor<Int> division(divisor);
  const Int multiple = most / divisor * divisor;
  for (Int value : {Int(0), Int(divisor - 1), divisor, Int(multiple - 1), multiple, most, any<Int>()}) {
    Int quotient = value;
    const Int remainder = division.split(quotient);
    if (quotient != value / divisor || remainder != value % divisor) std::exit(1);
  }
}

template <typename Int>
void test_all() {
  constexpr Int most = std::numeric_limits<Int>::max();
  for (Int power = 1; power > 0 && power <= most / 2; power *= 2)
    test<Int>(power), test<Int>(power + 1), test<Int>(2 * power - 1);
  test<Int>(most);
  for (int i = 0; i < 100000; ++i) test<Int>(any<Int>() | 1), test<Int>(any<Int>() / 2 + 1);
}

int main() { test_all<int32_t>(), test_all<int64_t>(); }
"""


def test_divisors_divide(tmp_path):
    run_program(PROGRAM, tmp_path, "-O1")
