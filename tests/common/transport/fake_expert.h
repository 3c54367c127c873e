// Experts that are simple enough to be exact, for tests of everything between the router and them.
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_FAKE_EXPERT_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_FAKE_EXPERT_H_

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "common/transport/expert_link.h"

namespace tandem {

// Expert e of layer l: y[j] = x[j] * (e + 1) + l + j.
inline float FakeExpert(float x, int layer, int expert, int64_t j) {
  return std::fma(x, static_cast<float>(expert + 1), static_cast<float>(layer + j));
}

// kernels::Backend::Combine in f32.
inline void FakeCombine(const TensorView& expert_rows, const int32_t* offsets, const float* weights,
                        const TensorView& out) {
  for (int64_t i = 0; i < out.rows(); ++i) {
    for (int64_t j = 0; j < out.width(); ++j) {
      float sum = 0;
      for (int t = offsets[i]; t < offsets[i + 1]; ++t) {
        sum = std::fma(weights[t], reinterpret_cast<const float*>(expert_rows.row(t))[j], sum);
      }
      reinterpret_cast<float*>(out.row(i))[j] = sum;
    }
  }
}

// What an expert worker must answer.
inline ExpertReply ComputeFakeReply(const ExpertRequest& request) {
  const int64_t hidden = request.rows.width();
  const auto make = [hidden](int64_t rows) {
    return std::make_shared<std::vector<float>>(static_cast<size_t>(rows * hidden));
  };
  auto experts = make(request.num_routes());
  auto answer = make(request.num_output_rows());
  const TensorView expert_rows(experts->data(), Dtype::kF32, {request.num_routes(), hidden});
  ExpertReply reply;
  reply.rows = TensorView(answer->data(), Dtype::kF32, {request.num_output_rows(), hidden});
  reply.owner = answer;
  int64_t next = 0;
  for (int i = 0; i < request.num_rows(); ++i) {
    const int begin = request.route_offsets[i];
    const int end = request.route_offsets[i + 1];
    for (int t = begin; t < end; ++t) {
      for (int64_t j = 0; j < hidden; ++j) {
        (*experts)[t * hidden + j] =
            FakeExpert(reinterpret_cast<const float*>(request.rows.row(i))[j],
                       static_cast<int>(request.id.layer), request.route_experts[t], j);
      }
    }
    if (request.combined[i]) {
      FakeCombine(expert_rows, &request.route_offsets[i], request.route_weights.data(),
                  reply.rows.slice_rows(next, 1));
      next += 1;
    } else {
      std::memcpy(reply.rows.row(next), expert_rows.row(begin), (end - begin) * hidden * 4);
      next += end - begin;
    }
  }
  return reply;
}

// Answers from a thread of its own, in the order of arrival; while held, it collects requests.
class FakeExpertLink : public ExpertLink {
 public:
  FakeExpertLink() : thread_([this] { Run(); }) {}
  ~FakeExpertLink() override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void Send(std::shared_ptr<const ExpertRequest> request, Done done) override {
    {
      std::lock_guard<std::mutex> lock(mu_);
      queue_.emplace_back(std::move(request), std::move(done));
      ++received_;
    }
    changed_.notify_all();
  }

  void set_held(bool held) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      held_ = held;
    }
    changed_.notify_all();
  }
  // False if `count` requests have not come after ten seconds.
  bool WaitForRequests(int count) {
    std::unique_lock<std::mutex> lock(mu_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return received_ >= count; });
  }
  int received() const {
    std::lock_guard<std::mutex> lock(mu_);
    return received_;
  }

 private:
  void Run() {
    std::unique_lock<std::mutex> lock(mu_);
    while (true) {
      changed_.wait(lock, [this] { return stop_ || (!held_ && !queue_.empty()); });
      if (queue_.empty()) return;
      auto [request, done] = std::move(queue_.front());
      queue_.erase(queue_.begin());
      const bool stopped = stop_;
      lock.unlock();
      if (stopped) {
        done({absl::UnavailableError("the fake expert worker has ended"), {}, nullptr});
      } else {
        done(ComputeFakeReply(*request));
      }
      lock.lock();
    }
  }

  mutable std::mutex mu_;
  std::condition_variable changed_;
  std::vector<std::pair<std::shared_ptr<const ExpertRequest>, Done>> queue_;
  bool held_ = false;
  bool stop_ = false;
  int received_ = 0;
  std::thread thread_;
};

// A request of `num_rows` rows with 1 to 3 routes each, every other row combined.
inline std::shared_ptr<ExpertRequest> MakeFakeRequest(uint64_t step, int num_rows, int64_t hidden,
                                                      uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(num_rows * hidden));
  for (float& value : *values) value = static_cast<float>(random() % 1000) / 8;
  auto request = std::make_shared<ExpertRequest>();
  request->id = {77, step, 3, 0, 0};
  request->placement = {5, 6};
  request->time_left = absl::Seconds(20);
  request->rows = TensorView(values->data(), Dtype::kF32, {num_rows, hidden});
  request->rows_owner = values;
  request->route_offsets.push_back(0);
  for (int i = 0; i < num_rows; ++i) {
    for (uint64_t k = 0; k <= random() % 3; ++k) {
      request->route_experts.push_back(static_cast<int32_t>(random() % 64));
      request->route_weights.push_back(static_cast<float>(random() % 1000) / 1000);
    }
    request->route_offsets.push_back(static_cast<int32_t>(request->route_experts.size()));
    request->combined.push_back(i % 2);
  }
  return request;
}

inline bool SameBytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.rows() == b.rows() && a.width() == b.width() &&
         std::memcmp(a.data, b.data, a.bytes()) == 0;
}

// Sends, and gives the reply, or DEADLINE_EXCEEDED if none came after 30 seconds.
inline std::future<ExpertReply> SendAsync(ExpertLink& link,
                                          std::shared_ptr<const ExpertRequest> request) {
  auto promise = std::make_shared<std::promise<ExpertReply>>();
  link.Send(std::move(request),
            [promise](ExpertReply reply) { promise->set_value(std::move(reply)); });
  return promise->get_future();
}
inline ExpertReply Get(std::future<ExpertReply> future) {
  if (future.wait_for(std::chrono::seconds(30)) != std::future_status::ready) {
    return {absl::InternalError("the link never called done"), {}, nullptr};
  }
  return future.get();
}

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_FAKE_EXPERT_H_
