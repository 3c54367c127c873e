// Tells work on a long text to stop.
#ifndef TANDEM_TESTS_COMMON_TOKENIZER_STOP_AT_H_
#define TANDEM_TESTS_COMMON_TOKENIZER_STOP_AT_H_

#include "common/tokenizer/stop_check.h"

namespace tandem {

// True from the `last`th time on that it is asked; counts how often it was.
class StopAt {
 public:
  explicit StopAt(int last) : last_(last) {}
  StopFunction Function() {
    return [this] { return ++asked_ >= last_; };
  }
  int asked() const { return asked_; }

 private:
  const int last_;
  int asked_ = 0;
};

constexpr int kNever = 1 << 30;

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TOKENIZER_STOP_AT_H_
