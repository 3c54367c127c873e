#include "tests/integration/deployment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

extern char** environ;

namespace tandem::test {
namespace {

constexpr absl::Duration kStartLimit = absl::Seconds(60);
constexpr char kGpuMemory[] = "900MiB";  // of a worker: several share a GPU

}  // namespace

TempDir::TempDir() {
  std::string path = (std::filesystem::temp_directory_path() / "tandem-test-XXXXXX").string();
  path_ = mkdtemp(path.data());
}
TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Process::Process(const std::vector<std::string>& command, const std::string& output_file)
    : output_file_(output_file) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, output_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                   0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) ended_ = true;
  posix_spawn_file_actions_destroy(&actions);
}

Process::~Process() {
  Signal(SIGKILL);
  Wait(absl::Seconds(10));
}

void Process::Signal(int signal) {
  if (running()) kill(pid_, signal);
}

bool Process::running() {
  if (!ended_ && waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
  return !ended_;
}

int Process::Wait(absl::Duration limit) {
  if (!WaitUntil([this] { return !running(); }, limit)) return -1000;
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_);
}

std::string Process::Output() const {
  std::ifstream file(output_file_, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

std::string Process::WaitForWord(const std::string& marker, absl::Duration limit) {
  std::string word;
  WaitUntil(
      [&] {
        const bool alive = running();  // before reading, so that the last words are seen
        const std::string output = Output();
        const size_t at = output.find(marker);
        const size_t begin = at + marker.size();
        const size_t end = at == std::string::npos ? at : output.find_first_of(" \n;", begin);
        if (end != std::string::npos) word = output.substr(begin, end - begin);
        return !word.empty() || !alive;
      },
      limit);
  return word;
}

bool WaitUntil(const std::function<bool()>& condition, absl::Duration limit) {
  const absl::Time end = absl::Now() + limit;
  while (!condition()) {
    if (absl::Now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

const std::string& TestDevice() {
  static const auto* const device = new std::string([] {
    const char* const wanted = std::getenv("TANDEM_TEST_DEVICE");
    return wanted == nullptr ? "cpu" : wanted;
  }());
  return *device;
}
std::string Binary(const std::string& name) {
  if (const char* const dir = std::getenv("TANDEM_TEST_PROGRAMS"))
    return absl::StrCat(dir, "/", name);
  return absl::StrCat(TANDEM_BINARY_DIR, TestDevice() == "cuda" ? "/cuda-emulation/" : "/", name);
}
std::string TinyModel() { return SourcePath("tests/golden/tiny"); }

Deployment::Deployment(const DeploymentOptions& options) : options_(options) {
  StartGateway("127.0.0.1:0");
  if (options.attention_workers > 0) {
    registry_ = gateway_->WaitForWord("registry on ", kStartLimit);
    for (int i = 0; i < options.attention_workers; ++i) {
      StartWorker("tandem-attention-worker", options.device, options.attention_flags);
    }
    for (int i = 0; i < options.expert_workers; ++i) StartExpertWorker();
  }
  ExpectServing();
}

void Deployment::StartExpertWorker() { StartExpertWorker(options_.expert_flags); }

void Deployment::StartExpertWorker(const std::vector<std::string>& flags) {
  StartWorker("tandem-expert-worker", options_.expert_device, flags);
}

void Deployment::StartWorker(const std::string& binary, const std::string& device,
                             const std::vector<std::string>& flags) {
  std::vector<std::string> command = {Binary(binary),
                                      "--model",
                                      options_.model,
                                      "--dtype",
                                      options_.dtype,
                                      "--registry",
                                      registry_,
                                      "--listen",
                                      "127.0.0.1:0",
                                      "--device",
                                      device,
                                      "--threads",
                                      "1"};
  if (device == "cuda") command.insert(command.end(), {"--gpu-memory", kGpuMemory});
  command.insert(command.end(), options_.weights_flags.begin(), options_.weights_flags.end());
  command.insert(command.end(), options_.worker_flags.begin(), options_.worker_flags.end());
  command.insert(command.end(), flags.begin(), flags.end());
  workers_.push_back(std::make_unique<Process>(
      command, absl::StrCat(dir_.path(), "/", binary, workers_.size(), ".log")));
}

void Deployment::RestartGateway() {
  StartGateway(registry_);
  ExpectServing();
}

void Deployment::StartGateway(const std::string& registry) {
  std::vector<std::string> command = options_.gateway_prefix;
  command.insert(command.end(), {Binary("tandem-gateway"), "--model", options_.model, "--dtype",
                                 options_.dtype, "--listen", "127.0.0.1:0"});
  if (options_.attention_workers > 0) {
    command.insert(command.end(), {"--registry", registry, "--attention-workers",
                                   std::to_string(options_.attention_workers), "--expert-workers",
                                   std::to_string(options_.expert_workers)});
  } else {
    command.insert(command.end(), {"--device", options_.device});
    command.insert(command.end(), options_.weights_flags.begin(), options_.weights_flags.end());
  }
  command.insert(command.end(), options_.gateway_flags.begin(), options_.gateway_flags.end());
  gateway_ = std::make_unique<Process>(command,
                                       absl::StrCat(dir_.path(), "/gateway", gateways_++, ".log"));
  address_ = gateway_->WaitForWord("gateway on ", kStartLimit);
  if (address_.empty()) {
    ADD_FAILURE() << "the gateway does not start: " << gateway_->Output();
    address_ = "127.0.0.1:1";  // nobody
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  stub_ = v1::Inference::NewStub(grpc::CreateCustomChannel(
      address_,
      options_.credentials == nullptr ? grpc::InsecureChannelCredentials() : options_.credentials,
      arguments));
}

void Deployment::ExpectServing() {
  if (WaitUntil([&] { return Status().state() == "serving"; }, kStartLimit)) return;
  std::string logs = gateway_->Output();
  for (const auto& worker : workers_) logs += worker->Output();
  ADD_FAILURE() << "the deployment does not serve: " << Status().detail() << "\n" << logs;
}

v1::GetStatusResponse Deployment::Status() {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::GetStatusResponse status;
  if (!stub_->GetStatus(&context, {}, &status).ok()) status.Clear();
  return status;
}

std::vector<int64_t> Deployment::CounterEach(const std::string& kind, const std::string& name) {
  std::vector<int64_t> values;
  const v1::GetStatusResponse status = Status();
  for (const auto& worker : status.workers()) {
    if (worker.kind() != kind) continue;
    const auto it = worker.counters().find(name);
    values.push_back(it == worker.counters().end() ? -1 : it->second);
  }
  return values;
}

int64_t Deployment::Counter(const std::string& kind, const std::string& name) {
  int64_t sum = 0;
  for (int64_t value : CounterEach(kind, name)) sum += value;
  return sum;
}

bool Deployment::Idle() {
  const v1::GetStatusResponse status = Status();
  bool idle = status.workers_size() > 0;
  for (const auto& worker : status.workers()) {
    const auto& counters = worker.counters();
    const auto value = [&](const char* name) {
      const auto it = counters.find(name);
      return it == counters.end() ? 0 : it->second;
    };
    for (const char* name : {"requests_live", "jobs_waiting", "jobs_running", "steps_outstanding",
                             "sequences_live", "batches_live", "rows_live", "parts_live"}) {
      idle = idle && value(name) == 0;
    }
    idle = idle && value("pages_free") == value("pages_total");
  }
  return idle;
}

bool Deployment::WaitIdle(absl::Duration limit) {
  const auto reports = [this] {
    std::map<uint32_t, int64_t> by_worker;
    const v1::GetStatusResponse status = Status();
    for (const auto& worker : status.workers()) {
      const auto it = worker.counters().find("reports_total");  // not of workers in the gateway
      if (it != worker.counters().end()) by_worker[worker.id()] = it->second;
    }
    return by_worker;
  };
  // The next report may have been on its way already; the one after it was not.
  constexpr int64_t kFresh = 2;
  const std::map<uint32_t, int64_t> before = reports();
  return WaitUntil(
      [&] {
        const std::map<uint32_t, int64_t> now = reports();
        const bool fresh = std::all_of(now.begin(), now.end(), [&](const auto& worker) {
          const auto it = before.find(worker.first);  // one that has joined since counts from 0
          return worker.second >= (it == before.end() ? 0 : it->second) + kFresh;
        });
        return fresh && Idle();
      },
      limit);
}

v1::GenerateRequest ShortRequest() {
  v1::GenerateRequest request;
  for (int i = 0; i < 10; ++i) request.mutable_token_ids()->add_ids(i * 37 + 11);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(4);
  return request;
}

v1::GenerateRequest SeededRequest(int seed, uint32_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < 5 + seed % 90; ++i) {
    request.mutable_token_ids()->add_ids((i * 37 + seed * 11) % 500 + 11);
  }
  request.mutable_sampling()->set_temperature(0.8);
  request.mutable_sampling()->set_seed(seed);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

Answer Ask(v1::Inference::Stub& stub, const v1::GenerateRequest& request, absl::Duration timeout) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const auto stream = stub.Generate(&context, request);
  Answer answer;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    const auto& chunk = response.chunk();
    answer.ids.insert(answer.ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    for (float log_prob : chunk.log_probs())
      answer.bits.push_back(std::bit_cast<uint32_t>(log_prob));
    answer.text += chunk.text();
    if (response.has_finished()) answer.text += response.finished().text();
  }
  answer.status = stream->Finish();
  return answer;
}

std::vector<Answer> AskAll(v1::Inference::Stub& stub,
                           const std::vector<v1::GenerateRequest>& requests, int at_once) {
  std::vector<Answer> answers(requests.size());
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < at_once; ++i) {
    threads.emplace_back([&] {
      for (size_t mine; (mine = next++) < requests.size();) {
        answers[mine] = Ask(stub, requests[mine]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return answers;
}

}  // namespace tandem::test
