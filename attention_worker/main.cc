// tandem-attention-worker: joins a gateway's registry, loads attention, shared experts and lm_head,
// and runs the gateway's steps. The composition root of an attention worker.

#include <atomic>
#include <mutex>
#include <thread>

#include "attention_worker/combine.h"
#include "attention_worker/engine.h"
#include "attention_worker/model.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/digest.h"
#include "common/mode.h"
#include "common/service/progress.h"
#include "common/service/registry_client.h"
#include "common/service/service_host.h"
#include "common/service/worker_options.h"
#include "common/status.h"
#include "common/tokenizer/allowed_ids.h"
#include "common/transport/expert_dispatcher.h"
#include "common/transport/grpc_attention_service.h"
#include "common/transport/grpc_expert_link.h"
#include "kernels/backend.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

struct Options {
  WorkerOptions worker;
  int64_t cache_tokens = 65536;
};

absl::Status Serve(const Options& options) {
  TANDEM_ASSIGN_OR_RETURN(const Dtype dtype, ParseMode(options.worker.dtype));
  TANDEM_ASSIGN_OR_RETURN(const auto backend, kernels::CreateCpuBackend(options.worker.threads));
  TANDEM_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.worker.model_dir));
  TANDEM_ASSIGN_OR_RETURN(const std::string digest, CheckpointDigest(*checkpoint));
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::Load(options.worker.model_dir);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();

  const uint64_t incarnation = NewIncarnation();
  std::vector<std::shared_ptr<GrpcExpertLink>> links;
  std::mutex links_mutex;
  ExpertDispatcher dispatcher(
      incarnation, {},
      [&](const Placement::Worker& worker) {
        auto link = std::make_shared<GrpcExpertLink>(GrpcPeer{worker.address, nullptr});
        std::lock_guard lock(links_mutex);
        links.push_back(link);
        return link;
      },
      MakeCombine(backend.get()));

  LoadProgress progress("attention");
  std::unique_ptr<AttentionModel> model;
  std::unique_ptr<AttentionEngine> engine;
  std::atomic<AttentionEngine*> ready = nullptr;
  GrpcAttentionService service(
      [&](AttentionLink::Observer* observer) {
        AttentionEngine* now = ready;
        return now == nullptr ? nullptr : now->Connect(observer);
      },
      {.digest = digest});
  TANDEM_ASSIGN_OR_RETURN(const auto host,
                          ServiceHost::Start(options.worker.listen, {service.service()},
                                             {"tandem.v1.AttentionWorker"}));
  spdlog::info("attention worker on {} ({})", host->address(), backend->Description());

  const auto counters = [&] {
    CounterSnapshot all;
    if (AttentionEngine* now = ready) all = now->Counters();
    for (auto& counter : dispatcher.Counters()) all.push_back(std::move(counter));
    int64_t header_bytes = 0, payload_bytes = 0;
    std::lock_guard lock(links_mutex);
    for (const auto& link : links) {
      for (const auto& [name, value] : link->Counters()) {
        if (name == "header_bytes_sent_total") header_bytes += value;
        if (name == "payload_bytes_sent_total") payload_bytes += value;
      }
    }
    all.emplace_back("expert_header_bytes_sent_total", header_bytes);
    all.emplace_back("expert_payload_bytes_sent_total", payload_bytes);
    all.emplace_back("mapped_tensors", checkpoint->mapped_tensors());
    all.emplace_back("mapped_bytes", checkpoint->mapped_bytes());
    all.emplace_back("loaded_percent", static_cast<int64_t>(progress.share() * 100));
    return all;
  };
  TANDEM_ASSIGN_OR_RETURN(const auto metrics,
                          MetricsHost::Start(options.worker.listen, "tandem_attention", counters));

  std::mutex mutex;  // guards the two below
  PlacementVersion placement;
  absl::Status error;
  std::atomic<bool> failed = false;
  const auto fail = [&](absl::Status status) {
    std::lock_guard lock(mutex);
    error = std::move(status);
    failed = true;
  };
  std::thread loading([&] {
    const auto load = [&]() -> absl::Status {
      TANDEM_ASSIGN_OR_RETURN(model, AttentionModel::Load(*checkpoint, dtype, [&](float share) {
                                progress.Report(share);
                              }));
      AttentionEngineOptions engine_options;
      engine_options.total_pages = static_cast<int>(
          (options.cache_tokens + SequenceSpec::kPageTokens - 1) / SequenceSpec::kPageTokens);
      if (tokenizer.ok()) {
        engine_options.ids_with_token =
            IdsWithToken(tokenizer->get(), checkpoint->config().vocab_size);
      }
      TANDEM_ASSIGN_OR_RETURN(
          engine, AttentionEngine::Create(backend.get(), model.get(), &dispatcher, engine_options));
      progress.Report(1);
      ready = engine.get();
      host->SetServing(true);
      return absl::OkStatus();
    };
    if (absl::Status status = load(); !status.ok()) fail(std::move(status));
  });

  v1::WorkerHello hello;
  hello.set_kind(v1::WORKER_KIND_ATTENTION);
  hello.set_address(options.worker.advertise.empty() ? host->address() : options.worker.advertise);
  hello.set_incarnation(incarnation);
  hello.set_digest(digest);
  hello.set_dtype(options.worker.dtype);
  hello.set_numerics_class(backend->NumericsClass());
  hello.set_device(backend->Description());
  RegistryClient::Callbacks callbacks;
  callbacks.health = [&] {
    std::lock_guard lock(mutex);
    return WorkerHealth{ready != nullptr && placement.counter > 0, progress.share(), placement,
                        counters()};
  };
  callbacks.on_accepted = [](WorkerId, uint64_t) {};
  callbacks.on_use = [&](Placement use) {
    const PlacementVersion version = use.version;
    dispatcher.SetPlacement(std::move(use));
    std::lock_guard lock(mutex);
    placement = version;
  };
  callbacks.on_refused = fail;
  {
    RegistryClient registry(options.worker.registry, hello, callbacks);
    WaitForEnd([&] { return failed.load(); });
  }
  host->SetServing(false);
  host->Shutdown(kShutdownGrace);
  loading.join();
  std::lock_guard lock(mutex);
  return error;
}

}  // namespace
}  // namespace tandem

int main(int argc, char** argv) {
  tandem::BlockEndSignals();
  CLI::App app("Runs attention, shared experts and sampling for a Tandem gateway.");
  tandem::Options options;
  options.worker.AddTo(app);
  app.add_option("--cache-tokens", options.cache_tokens, "size of the latent cache")
      ->check(CLI::Range(int64_t{64}, int64_t{1} << 36))
      ->capture_default_str();
  if (const auto code = tandem::ParseCommandLine(app, argc, argv)) return *code;
  const absl::Status status = tandem::Serve(options);
  if (status.ok()) return 0;
  spdlog::error("{}", std::string(status.message()));
  return 1;
}
