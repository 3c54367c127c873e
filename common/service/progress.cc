#include "common/service/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace tandem {

void LoadProgress::Report(float share) {
  constexpr int kBarWidth = 40;
  MutexLock lock(mutex_);
  share_ = std::clamp(share, 0.0f, 1.0f);
  const absl::Time time = absl::Now();
  first_ = std::min(first_, time);
  if (time - first_ < quiet_) return;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const int now = static_cast<int>(share_ * (terminal ? 100 : 10));
  if (now == shown_) return;
  shown_ = now;
  if (!terminal) {
    spdlog::info("{}: {}%", what_, now * 10);
    return;
  }
  std::string bar(static_cast<size_t>(now * kBarWidth / 100), '#');
  bar.resize(kBarWidth, ' ');
  std::fprintf(stderr, "\r%s [%s] %3d%%%s", what_.c_str(), bar.c_str(), now,
               now == 100 ? "\n" : "");
}

}  // namespace tandem
