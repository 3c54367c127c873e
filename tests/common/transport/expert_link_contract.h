// What every ExpertLink to a worker in another process promises, as tests of any such link.
//
// A Transport has
//   Worker  a FakeExpertLink `engine` that is served until Kill(), connections_live() and
//           replies_dropped()
//   Link    with Counters()
//   Dial(Worker&, bool small) -> std::unique_ptr<Link>; with `small`, one request of 8 rows of 64
//           values may be outstanding, but not two
#ifndef TANDEM_TESTS_COMMON_TRANSPORT_EXPERT_LINK_CONTRACT_H_
#define TANDEM_TESTS_COMMON_TRANSPORT_EXPERT_LINK_CONTRACT_H_

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "tests/common/transport/fake_expert.h"
#include "tests/common/transport/link_checks.h"

namespace tandem {

template <typename Transport>
class ExpertLinkContract : public testing::Test {};
TYPED_TEST_SUITE_P(ExpertLinkContract);

TYPED_TEST_P(ExpertLinkContract, AnswersAsTheWorkerItself) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, false);
  for (int num_rows : {1, 5, 100}) {
    const auto request = MakeFakeRequest(num_rows, num_rows, 64);
    ExpectAnswers(Get(SendAsync(*link, request)), *request);
  }
  EXPECT_EQ(Counter(link->Counters(), "requests_total"), 3);
  EXPECT_EQ(Counter(link->Counters(), "requests_live"), 0);
  EXPECT_EQ(Counter(link->Counters(), "outstanding_bytes"), 0);
}

TYPED_TEST_P(ExpertLinkContract, CarriesStridedRows) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, false);
  const auto wide = MakeFakeRequest(1, 7, 64);
  const auto request = std::make_shared<ExpertRequest>(*wide);
  request->rows.shape[1] = 40;
  ExpectAnswers(Get(SendAsync(*link, request)), *request);
}

TYPED_TEST_P(ExpertLinkContract, CarriesMegabytes) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, false);
  const auto request = MakeFakeRequest(1, 640, 2048);
  ExpectAnswers(Get(SendAsync(*link, request)), *request);
  EXPECT_GT(Counter(link->Counters(), "payload_bytes_sent_total"), 5 << 20);
  EXPECT_LT(Counter(link->Counters(), "header_bytes_sent_total"), 1000);
}

TYPED_TEST_P(ExpertLinkContract, ManyThreadsAndTwoLinksShareAWorker) {
  typename TypeParam::Worker worker;
  const std::unique_ptr<typename TypeParam::Link> links[2] = {TypeParam::Dial(worker, false),
                                                              TypeParam::Dial(worker, false)};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&links, t] {
      for (int i = 0; i < 20; ++i) {
        const auto request = MakeFakeRequest(t * 1000 + i, 1 + i % 9 * 40, 128, i);
        ExpectAnswers(Get(SendAsync(*links[t % 2], request)), *request);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(worker.engine.received(), 80);
}

TYPED_TEST_P(ExpertLinkContract, AReplyOutlivesTheNextOnesAndTheLink) {
  typename TypeParam::Worker worker;
  auto link = TypeParam::Dial(worker, false);
  const auto request = MakeFakeRequest(1, 20, 64);
  const ExpertReply kept = Get(SendAsync(*link, request));
  for (int i = 2; i < 10; ++i) {
    const auto next = MakeFakeRequest(i, 20, 64, i);
    ExpectAnswers(Get(SendAsync(*link, next)), *next);
  }
  link.reset();
  ExpectAnswers(kept, *request);
}

TYPED_TEST_P(ExpertLinkContract, AWorkerThatDiesAnswersUnavailableAtOnce) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, false);
  worker.engine.set_held(true);
  std::future<ExpertReply> reply = SendAsync(*link, MakeFakeRequest(1, 4, 64));
  ASSERT_TRUE(worker.engine.WaitForRequests(1));
  const auto start = std::chrono::steady_clock::now();
  worker.Kill();
  const absl::Status status = Get(std::move(reply)).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
  // With nobody there, an answer still comes at once.
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(2, 4, 64))).status.code(),
            absl::StatusCode::kUnavailable);
}

TYPED_TEST_P(ExpertLinkContract, TimeLimitsHoldAndLateRepliesAreDropped) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, false);
  worker.engine.set_held(true);
  const auto request = MakeFakeRequest(1, 4, 64);
  request->time_left = absl::Milliseconds(50);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Get(SendAsync(*link, request)).status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1050));
  EXPECT_EQ(Counter(link->Counters(), "timeouts_total"), 1);
  ASSERT_TRUE(worker.engine.WaitForRequests(1));
  worker.engine.set_held(false);
  EXPECT_TRUE(Eventually([&] { return Counter(link->Counters(), "late_replies_total") == 1; }));
  EXPECT_TRUE(Eventually([&] { return Counter(link->Counters(), "outstanding_bytes") == 0; }));
  const auto next = MakeFakeRequest(2, 4, 64);
  ExpectAnswers(Get(SendAsync(*link, next)), *next);

  const auto expired = MakeFakeRequest(3, 4, 64);
  expired->time_left = absl::ZeroDuration();
  EXPECT_EQ(Get(SendAsync(*link, expired)).status.code(), absl::StatusCode::kDeadlineExceeded);
}

TYPED_TEST_P(ExpertLinkContract, OutstandingBytesAreBounded) {
  typename TypeParam::Worker worker;
  const auto link = TypeParam::Dial(worker, true);
  worker.engine.set_held(true);
  const auto request = MakeFakeRequest(1, 8, 64);
  std::future<ExpertReply> first = SendAsync(*link, request);
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(2, 8, 64))).status.code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Get(SendAsync(*link, MakeFakeRequest(1, 1, 8))).status.code(),
            absl::StatusCode::kInvalidArgument);  // the id is taken
  worker.engine.set_held(false);
  ExpectAnswers(Get(std::move(first)), *request);
  const auto next = MakeFakeRequest(2, 8, 64);
  ExpectAnswers(Get(SendAsync(*link, next)), *next);
}

TYPED_TEST_P(ExpertLinkContract, ClosingALinkAnswersWhatIsOutstanding) {
  typename TypeParam::Worker worker;
  worker.engine.set_held(true);
  auto link = TypeParam::Dial(worker, false);
  std::future<ExpertReply> reply = SendAsync(*link, MakeFakeRequest(1, 8, 64));
  ASSERT_TRUE(worker.engine.WaitForRequests(1));
  link.reset();
  EXPECT_EQ(Get(std::move(reply)).status.code(), absl::StatusCode::kUnavailable);
  // The worker computes it nevertheless, for nobody.
  EXPECT_TRUE(Eventually([&] { return worker.connections_live() == 0; }));
  worker.engine.set_held(false);
  EXPECT_TRUE(Eventually([&] { return worker.replies_dropped() == 1; }));
}

REGISTER_TYPED_TEST_SUITE_P(ExpertLinkContract, AnswersAsTheWorkerItself, CarriesStridedRows,
                            CarriesMegabytes, ManyThreadsAndTwoLinksShareAWorker,
                            AReplyOutlivesTheNextOnesAndTheLink,
                            AWorkerThatDiesAnswersUnavailableAtOnce,
                            TimeLimitsHoldAndLateRepliesAreDropped, OutstandingBytesAreBounded,
                            ClosingALinkAnswersWhatIsOutstanding);

}  // namespace tandem

#endif  // TANDEM_TESTS_COMMON_TRANSPORT_EXPERT_LINK_CONTRACT_H_
