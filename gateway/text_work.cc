#include "gateway/text_work.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

constexpr int kThreads = 2;

}  // namespace

TextWork::TextWork() {
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
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
  changed_.NotifyOne();
  return absl::OkStatus();
}

void TextWork::Run() {
  MutexLock lock(mutex_);
  while (true) {
    changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return ending_ || !waiting_.empty();
    });
    if (waiting_.empty()) return;
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    lock.Unlock();
    next.work();
    next.work = nullptr;
    lock.Lock();
    waiting_bytes_ -= next.bytes;
  }
}

}  // namespace tandem
