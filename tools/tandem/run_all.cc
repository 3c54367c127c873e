#include "run_all.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"

namespace tandem::tool {

absl::Status RunAll(
    Client& client, const std::vector<v1::GenerateRequest>& requests, int concurrency,
    const std::function<void(size_t, const absl::StatusOr<Completion>&)>& on_answer) {
  std::atomic<size_t> next = 0;
  struct {
    Mutex mutex;
    CondVar changed;
    std::vector<std::optional<absl::StatusOr<Completion>>> answers ABSL_GUARDED_BY(mutex);
  } shared;
  {
    MutexLock lock(shared.mutex);
    shared.answers.resize(requests.size());
  }
  const auto work = [&] {
    for (size_t mine; (mine = next++) < requests.size();) {
      absl::StatusOr<Completion> answer = RunGenerate(client, requests[mine], nullptr);
      MutexLock lock(shared.mutex);
      shared.answers[mine] = std::move(answer);
      shared.changed.NotifyAll();
    }
  };
  std::vector<std::thread> threads;
  const size_t count = std::min(requests.size(), static_cast<size_t>(concurrency));
  for (size_t i = 0; i < count; ++i) threads.emplace_back(work);

  size_t failed = 0;
  absl::Status first_error;
  for (size_t i = 0; i < requests.size(); ++i) {
    std::optional<absl::StatusOr<Completion>> answer;
    {
      MutexLock lock(shared.mutex);
      shared.changed.Wait(lock, [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shared.mutex) {
        return shared.answers[i].has_value();
      });
      answer.swap(shared.answers[i]);
    }
    if (!answer->ok() && failed++ == 0) first_error = answer->status();
    on_answer(i, *answer);
  }
  for (std::thread& thread : threads) thread.join();
  if (failed == 0) return absl::OkStatus();
  return absl::Status(first_error.code(),
                      absl::StrCat(failed, " of ", requests.size(),
                                   " requests failed, the first so: ", first_error.message()));
}

}  // namespace tandem::tool
