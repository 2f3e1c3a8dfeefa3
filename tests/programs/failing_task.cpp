// Runs tasks with steps in turn, of which one throws (in a step, or before its first step if that is negative). Returns 1
// if TaskQueue::share_out threw that exception, of the same class, 0 if it threw none.
#include <stdexcept>

#include "common/parallel.h"

extern "C" int failing_task(int failing_task, int failing_step) {
  constexpr int64_t tasks = 200, sequences = 2, steps = 3;
  dcnzoo::TaskQueue queue(tasks, sequences, steps);
  try {
    queue.share_out([&](int64_t sequence) {
      for (int64_t task; queue.take(task, sequence);) {
        if (task == failing_task && failing_step < 0) throw std::out_of_range("before its turn");
        for (int64_t step = 0; step < steps; ++step)
          queue.do_in_turn(task, step, [&] {
            if (task == failing_task && step == failing_step) throw std::out_of_range("in its turn");
          });
      }
    });
  } catch (const std::out_of_range&) {
    return 1;
  }
  return 0;
}
