// Real processes for tests: starts the built binaries on free ports and talks to them over gRPC.
#ifndef TANDEM_TESTS_INTEGRATION_DEPLOYMENT_H_
#define TANDEM_TESTS_INTEGRATION_DEPLOYMENT_H_

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/inference.grpc.pb.h"
#include "tests/source_path.h"

namespace tandem::test {

// A folder that is removed at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A child process with its output in a file. Killed at the end if it still runs.
class Process {
 public:
  Process(const std::vector<std::string>& command, const std::string& output_file);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void Signal(int signal);
  // The exit code, or -signal; -1000 if it still ran after `limit`.
  int Wait(absl::Duration limit);
  bool running();
  pid_t pid() const { return pid_; }
  std::string Output() const;
  // The word behind `marker` in the output, once it is there; empty after `limit` or if the process
  // ended without it.
  std::string WaitForWord(const std::string& marker, absl::Duration limit);

 private:
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
  std::string output_file_;
};

// True once `condition` holds; false after `limit`.
bool WaitUntil(const std::function<bool()>& condition, absl::Duration limit);

// What the programs compute on: "cpu", or "cuda" where the environment's TANDEM_TEST_DEVICE says
// so, which is the CUDA backend on the emulation of a GPU.
const std::string& TestDevice();
// Of this build, for TestDevice(), or in the folder TANDEM_TEST_PROGRAMS.
std::string Binary(const std::string& name);
std::string TinyModel();  // the project's own golden checkpoint

struct DeploymentOptions {
  std::string model = TinyModel();
  std::string dtype = "f32";
  std::string device = TestDevice();
  std::string expert_device = TestDevice();  // of expert workers
  int attention_workers = 0;                 // 0: all in the gateway's process
  int expert_workers = 0;
  std::vector<std::string> gateway_prefix;  // a command that starts the gateway: taskset, prlimit
  std::vector<std::string> gateway_flags;
  std::vector<std::string> weights_flags;  // of whoever holds weights
  std::vector<std::string> worker_flags;
  std::vector<std::string> attention_flags;               // besides worker_flags
  std::vector<std::string> expert_flags;                  // likewise
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // of stub(); null: plain text
};

// A gateway with its workers, serving when the constructor returns (or the test has failed).
class Deployment {
 public:
  explicit Deployment(const DeploymentOptions& options);

  v1::Inference::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }
  Process& gateway() { return *gateway_; }
  std::vector<std::unique_ptr<Process>>& workers() { return workers_; }
  v1::GetStatusResponse Status();
  const std::string& registry() const { return registry_; }  // its address
  // Starts one more.
  void StartExpertWorker();
  void StartExpertWorker(const std::vector<std::string>& flags);
  // Starts another gateway at the registry's address, after the first has died, and waits for it.
  void RestartGateway();
  // A counter summed over the processes of a kind: "gateway", "attention" or "expert".
  int64_t Counter(const std::string& kind, const std::string& name);
  std::vector<int64_t> CounterEach(const std::string& kind, const std::string& name);
  // Whether nothing is alive anywhere: requests, sequences, batches, rows; and all pages are free.
  bool Idle();
  // Waits for that, by reports that the workers make after the call; false after `limit`.
  bool WaitIdle(absl::Duration limit = absl::Seconds(20));

 private:
  // Starts the gateway, `registry` its registry's address if it has workers.
  void StartGateway(const std::string& registry);
  void StartWorker(const std::string& binary, const std::string& device,
                   const std::vector<std::string>& flags);
  void ExpectServing();

  const DeploymentOptions options_;
  TempDir dir_;
  int gateways_ = 0;  // started so far
  std::string registry_;
  std::unique_ptr<Process> gateway_;
  std::vector<std::unique_ptr<Process>> workers_;
  std::string address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Ten ids, to be continued greedily by four.
v1::GenerateRequest ShortRequest();
// A prompt of 5 to 94 ids, and draws, that depend on the seed; `max_tokens` are generated.
v1::GenerateRequest SeededRequest(int seed, uint32_t max_tokens);

// What a Generate came to. `bits` are those of the log-probabilities.
struct Answer {
  grpc::Status status;
  std::vector<int32_t> ids;
  std::vector<uint32_t> bits;
  std::string text;
  bool operator==(const Answer& other) const {
    return status.ok() && other.status.ok() && ids == other.ids && bits == other.bits;
  }
};

Answer Ask(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
           absl::Duration timeout = absl::Seconds(120));
// Up to `at_once` at a time; answers in the order of the requests.
std::vector<Answer> AskAll(v1::Inference::Stub& stub,
                           const std::vector<v1::GenerateRequest>& requests, int at_once);

}  // namespace tandem::test

#endif  // TANDEM_TESTS_INTEGRATION_DEPLOYMENT_H_
