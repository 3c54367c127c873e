// The public API: validates, hands jobs to the step driver, streams what comes back.
#ifndef TANDEM_GATEWAY_INFERENCE_SERVICE_H_
#define TANDEM_GATEWAY_INFERENCE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>

#include "gateway/client_limits.h"
#include "gateway/live_calls.h"
#include "gateway/request_log.h"
#include "gateway/request_metrics.h"
#include "gateway/served_model.h"
#include "gateway/step_driver.h"
#include "gateway/text_work.h"
#include "proto/inference.grpc.pb.h"

namespace tandem {

// gRPC's callback threads only validate, tokenize short texts and enqueue here. The methods with
// text are raw: gRPC answers a request that it cannot parse, one with invalid UTF-8 for example,
// with an empty UNIMPLEMENTED, where INVALID_ARGUMENT and a sentence are due.
class InferenceService final
    : public v1::Inference::WithRawCallbackMethod_Generate<
          v1::Inference::WithRawCallbackMethod_Score<v1::Inference::WithRawCallbackMethod_Tokenize<
              v1::Inference::WithRawCallbackMethod_Detokenize<
                  v1::Inference::WithCallbackMethod_GetModel<
                      v1::Inference::WithCallbackMethod_GetStatus<v1::Inference::Service>>>>>> {
 public:
  using StatusFunction = std::function<v1::GetStatusResponse(const v1::GetStatusRequest&)>;
  // Names whose call it is, for the limits of each client.
  using CallerFunction = std::function<std::string(const grpc::CallbackServerContext&)>;
  // `driver` must outlive the service. `status` says the deployment's state. Without `caller` all
  // calls are one client's.
  InferenceService(StepDriver* driver, StatusFunction status, LiveCallLimits limits = {},
                   ClientLimitOptions client_limits = {}, CallerFunction caller = nullptr,
                   RequestLogLevel log_requests = RequestLogLevel::kFailed);

  // Requests are UNAVAILABLE before this, and answered from then on. `model` must outlive the
  // service.
  void SetModel(const ServedModel* model) { model_ = model; }

  // LiveCalls' and ClientLimits'
  CounterSnapshot Counters() const;
  const RequestMetrics& metrics() const { return *metrics_; }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Score(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;

 private:
  absl::StatusOr<const ServedModel*> Model() const;
  // Lets the call in, or gives its end and says in its trailers when to ask again.
  absl::StatusOr<ClientLimits::Lease> Admit(grpc::CallbackServerContext* context);
  // Whose call it is, which its client is told as well: kRequestIdKey of the initial metadata.
  static RequestTag Identify(grpc::CallbackServerContext* context);
  // Of a Generate or Score that carries nothing but its end.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Refuse(const char* rpc, const RequestTag& tag,
                                                     const absl::Status& status);
  template <typename Call, typename Request>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* StartCall(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* buffer);
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* StartUnary(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* buffer, grpc::ByteBuffer* response,
                                       absl::StatusOr<Response> (*answer)(const Request&,
                                                                          const ServedModel&,
                                                                          const StopFunction&));

  StepDriver* const driver_;
  const StatusFunction status_;
  std::atomic<const ServedModel*> model_ = nullptr;
  const CallerFunction caller_;
  const std::shared_ptr<RequestMetrics> metrics_ = std::make_shared<RequestMetrics>();
  const std::shared_ptr<RequestLog> log_;
  ClientLimits client_limits_;  // outlives the calls
  LiveCalls live_;
  TextWork text_work_;
};

}  // namespace tandem

#endif  // TANDEM_GATEWAY_INFERENCE_SERVICE_H_
