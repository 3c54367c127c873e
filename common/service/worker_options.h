// Flags that attention and expert workers share.
#ifndef TANDEM_COMMON_SERVICE_WORKER_OPTIONS_H_
#define TANDEM_COMMON_SERVICE_WORKER_OPTIONS_H_

#include <string>

#include "CLI/CLI.hpp"
#include "common/service/service_host.h"

namespace tandem {

struct WorkerOptions {
  std::string model_dir;
  std::string registry;
  std::string advertise;  // address that others dial; empty: where it listens
  std::string dtype = "bf16";
  int threads = 0;
  ListenOptions listen{"127.0.0.1:0", "", false};

  void AddTo(CLI::App& app) {
    app.add_option("--model", model_dir, "checkpoint folder")->required();
    app.add_option("--registry", registry, "the gateway's registry, host:port")->required();
    app.add_option("--dtype", dtype, "f32 or bf16")->capture_default_str();
    app.add_option("--threads", threads, "compute threads, 0 for one per core")
        ->check(CLI::Range(0, 1024));
    app.add_option("--advertise", advertise, "host:port that others reach this worker at");
    AddListenFlags(app, &listen);
  }
};

}  // namespace tandem

#endif  // TANDEM_COMMON_SERVICE_WORKER_OPTIONS_H_
