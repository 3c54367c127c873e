// What every fuzz target begins with. A target is one function: libFuzzer calls it with inputs of
// its own making, and AddressSanitizer, UndefinedBehaviorSanitizer and CHECK_HOLDS end the process
// where something is wrong. An answer, whichever, is right for most inputs.
#ifndef TANDEM_TESTS_FUZZ_FUZZ_H_
#define TANDEM_TESTS_FUZZ_FUZZ_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "common/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace tandem::fuzz {

// Input that is taken from its front, part by part.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  // The next byte; 0 at the end.
  uint8_t Byte() {
    const absl::string_view taken = Take(1);
    return taken.empty() ? 0 : static_cast<uint8_t>(taken[0]);
  }
  uint32_t Number() { return Byte() | uint32_t{Byte()} << 8; }
  // At most so many bytes.
  absl::string_view Take(size_t bytes) {
    const absl::string_view taken = rest_.substr(0, bytes);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  absl::string_view Rest() { return Take(rest_.size()); }
  // What comes before the next `separator`, which goes as well.
  absl::string_view Until(char separator) {
    const absl::string_view taken = Take(rest_.find(separator));
    Take(1);
    return taken;
  }

 private:
  absl::string_view rest_;
};

}  // namespace tandem::fuzz

#endif  // TANDEM_TESTS_FUZZ_FUZZ_H_
