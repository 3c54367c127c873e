// Serves an expert worker to other processes of its machine through shared memory.
#ifndef TANDEM_COMMON_TRANSPORT_SHM_EXPERT_SERVICE_H_
#define TANDEM_COMMON_TRANSPORT_SHM_EXPERT_SERVICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/counters.h"
#include "common/transport/expert_link.h"

namespace tandem {

// Listens where ShmExpertLink dials this process's life. One thread of its own takes connections
// and requests, checks them and hands them to the engine, which reads their rows where they lie;
// the engine's threads put its rows beside them. What a client asked for is computed even if the
// client has gone, and then dropped and counted.
class ShmExpertService {
 public:
  // `engine` must outlive the service and answer every request before it is destroyed.
  // UNAVAILABLE: this system has no such sockets.
  static absl::StatusOr<std::unique_ptr<ShmExpertService>> Start(uint64_t incarnation,
                                                                 ExpertLink* engine);
  // Ends all connections, and waits until the engine has answered every request.
  ~ShmExpertService();

  // shm_sessions_live, shm_sessions_total, shm_requests_total, shm_refused_total (messages that
  // were not fit to be computed), shm_replies_dropped_total (their client had gone)
  CounterSnapshot Counters() const;

 private:
  class Session;
  class Impl;
  explicit ShmExpertService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TRANSPORT_SHM_EXPERT_SERVICE_H_
