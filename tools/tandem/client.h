// The tool's connection: to a server, or to a deployment that it composes in its own process.
// Either way the same gRPC stub.
#ifndef TANDEM_TOOLS_TANDEM_CLIENT_H_
#define TANDEM_TOOLS_TANDEM_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/command_line.h"
#include "common/service/trust_options.h"
#include "common/tokenizer/chat_template.h"
#include "deployment/backend.h"
#include "deployment/embedded.h"
#include "proto/inference.grpc.pb.h"

namespace tandem::tool {

// Where to ask; the same flags on every command.
struct ConnectOptions {
  std::string server = "127.0.0.1:8470";
  ClientTrustOptions trust;
  std::string model_dir;  // not empty: in this process
  std::string served_name;
  std::string dtype = "bf16";
  BackendOptions backend;
  int64_t cache_tokens = 65536;
  std::optional<uint64_t> made_up_weights;  // a seed; with model_dir, and no flag but bench's
  int max_running = 0;                      // with model_dir: requests at once; 0: the default
  double timeout_s = 0;                     // of one request; 0: none
  bool json = false;

  void AddTo(CommandLine& app);
  void AddJsonTo(CommandLine& app);
};

class Client {
 public:
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ConnectOptions& options);
  ~Client();

  v1::Inference::Stub& stub() { return *stub_; }
  // A context with the request's deadline.
  std::unique_ptr<grpc::ClientContext> NewContext() const;
  // The call's status with what a person needs to act on it.
  absl::Status Explain(const grpc::Status& status) const;
  // With `placement`, also who holds which experts.
  absl::StatusOr<v1::GetStatusResponse> GetStatus(bool placement = false);

 private:
  Client() = default;
  ConnectOptions options_;
  std::shared_ptr<const ClientTrust> trust_;  // null: plain text
  std::unique_ptr<InProcessDeployment> deployment_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Adds to the request's chat.
void AddMessage(v1::GenerateRequest& request, const ChatMessage& message);

// What a finished Generate came to.
struct Completion {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<float> log_probs;
  std::vector<v1::GenerateResponse::TopLogProbs> top_logprobs;  // by id, if asked for
  v1::GenerateResponse::Started started;
  v1::GenerateResponse::Finished finished;
};

// Runs one Generate. Its answers, one for each of request.n, in the order of their choices.
absl::StatusOr<std::vector<Completion>> RunChoices(Client& client,
                                                   const v1::GenerateRequest& request);
// Runs one for one answer; `on_text` gets each piece of text as it comes. The first form's
// `context`, of Client::NewContext, can be cancelled from another thread meanwhile: CANCELLED.
absl::StatusOr<Completion> RunGenerate(Client& client, grpc::ClientContext& context,
                                       const v1::GenerateRequest& request,
                                       const std::function<void(const std::string&)>& on_text);
absl::StatusOr<Completion> RunGenerate(Client& client, const v1::GenerateRequest& request,
                                       const std::function<void(const std::string&)>& on_text);

// One line for a person: time to the first token, tokens per second after it, why it ended.
std::string DescribeSpeed(const Completion& completion);

const char* FinishReasonName(v1::GenerateResponse::FinishReason reason);  // "eos", "length", "stop"

// --add-bos, shared by generate and score.
void AddBosOption(CommandLine& app, std::optional<bool>* add_bos);

// Sampling flags, shared by generate and chat.
struct SamplingOptions {
  std::optional<float> temperature;  // what is not given the server decides, as the next ones
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> frequency_penalty;
  std::optional<float> presence_penalty;
  std::vector<std::pair<int32_t, float>> logit_bias;  // ids with what is added
  std::optional<uint64_t> seed;
  std::optional<uint32_t> max_tokens;
  uint32_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_ids;
  int32_t priority = 0;

  void AddTo(CommandLine& app);
  void Fill(v1::GenerateRequest& request) const;
};

}  // namespace tandem::tool

#endif  // TANDEM_TOOLS_TANDEM_CLIENT_H_
