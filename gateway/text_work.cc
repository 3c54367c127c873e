#include "gateway/text_work.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem {

TextWork::TextWork() {
  for (const size_t max_bytes : {kMediumBytes, std::numeric_limits<size_t>::max()}) {
    threads_.emplace_back([this, max_bytes] { Run(max_bytes); });
  }
}

TextWork::~TextWork() {
  {
    MutexLock lock(mutex_);
    ending_ = true;
  }
  changed_.NotifyAll();
  for (std::thread& thread : threads_) thread.join();
}

absl::Status TextWork::Do(size_t bytes, std::function<void()> work) {
  if (bytes <= kShortBytes) {
    work();
    return absl::OkStatus();
  }
  {
    MutexLock lock(mutex_);
    if (waiting_bytes_ > 0 && waiting_bytes_ + bytes > kMaxWaitingBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_bytes_, " bytes of text are being tokenized, and ", bytes,
                       " more would be over the limit of ", kMaxWaitingBytes));
    }
    waiting_bytes_ += bytes;
    waiting_.push_back({bytes, std::move(work)});
  }
  changed_.NotifyAll();
  return absl::OkStatus();
}

void TextWork::Run(size_t max_bytes) {
  MutexLock lock(mutex_);
  const auto next = [this, max_bytes]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::find_if(waiting_.begin(), waiting_.end(),
                        [=](const Waiting& waiting) { return waiting.bytes <= max_bytes; });
  };
  while (true) {
    changed_.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return ending_ || next() != waiting_.end();
    });
    const auto found = next();
    if (found == waiting_.end()) return;
    Waiting taken = std::move(*found);
    waiting_.erase(found);
    lock.Unlock();
    taken.work();
    taken.work = nullptr;
    lock.Lock();
    waiting_bytes_ -= taken.bytes;
  }
}

}  // namespace tandem
