// A c10d backend over oneCCL, for CPU tensors.
//
// Every group owns one oneCCL communicator. One thread, the engine, starts all groups' collectives in the order
// in which they were submitted and drives them by polling, so that they overlap with whatever the submitting
// thread computes. oneCCL's own worker is not used (CCL_WORKER_OFFLOAD=0): an error there ends the process, here
// it is an exception.
//
// A communicator that failed is broken for good: what is pending or submitted later fails with the first reason.
// Once one has failed, all are leaked: oneCCL may hang in destroying them, or end the process because the lost peer kept
// their addresses. Who leaves in order destroys its own, and so do the others: groups can be made again.
//
// This file reads no environment; oneCCL does, and oneccl.py sets it up.
#include <torch/extension.h>
#include <pybind11/chrono.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <oneapi/ccl.hpp>
#include <sys/prctl.h>
#include <algorithm>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <thread>

#include "peer_watch.hpp"

// Two symbols of Intel's compiler runtime that the static library wants.
extern "C" void* _intel_fast_memcpy(void* to, const void* from, size_t n) { return memcpy(to, from, n); }
extern "C" void* _intel_fast_memset(void* to, int value, size_t n) { return memset(to, value, n); }

namespace {
using at::Tensor;
using Tensors = std::vector<Tensor>;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

ccl::datatype datatype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return ccl::datatype::float32;
    case at::kDouble: return ccl::datatype::float64;
    case at::kBFloat16: return ccl::datatype::bfloat16;
    case at::kHalf: return ccl::datatype::float16;
    case at::kChar: return ccl::datatype::int8;
    case at::kByte: case at::kBool: return ccl::datatype::uint8;
    case at::kShort: return ccl::datatype::int16;
    case at::kInt: return ccl::datatype::int32;
    case at::kLong: return ccl::datatype::int64;
    default: TORCH_CHECK_TYPE(false, "oneccl does not send tensors of type ", t.scalar_type());
  }
}

ccl::reduction reduction_of(const c10d::ReduceOp& op, const Tensor& t) {
  if (t.scalar_type() == at::kBool) {  // the sum of truths is whether there is one
    if (op == c10d::ReduceOp::SUM || op == c10d::ReduceOp::MAX) return ccl::reduction::max;
    if (op == c10d::ReduceOp::PRODUCT || op == c10d::ReduceOp::MIN) return ccl::reduction::min;
  }
  switch (op) {
    case c10d::ReduceOp::SUM: return ccl::reduction::sum;
    case c10d::ReduceOp::AVG:
      TORCH_CHECK_TYPE(t.is_floating_point(), "oneccl averages floating-point tensors only");
      return ccl::reduction::sum;
    case c10d::ReduceOp::PRODUCT: return ccl::reduction::prod;
    case c10d::ReduceOp::MIN: return ccl::reduction::min;
    case c10d::ReduceOp::MAX: return ccl::reduction::max;
    default: TORCH_CHECK_TYPE(false, "oneccl reduces with sum, avg, product, min and max only");
  }
}

void check_dense(const Tensor& t) {
  TORCH_CHECK_TYPE(t.device().is_cpu() && t.layout() == at::kStrided, "oneccl sends dense CPU tensors only");
}

const Tensor& single(const Tensors& tensors) {
  TORCH_CHECK_VALUE(tensors.size() == 1, "oneccl takes one tensor a call, not ", tensors.size());
  check_dense(tensors[0]);
  return tensors[0];
}

// ---------------------------------------------------------------------------------------------------- engine

constexpr int64_t part_bytes = 1 << 20;  // of a reduction between two ranks; grows with the ranks
std::atomic<int> waiting{0};  // threads that have nothing to do but wait for a collective
void nudge_engine();

class Work : public c10d::Work {
 public:
  Work(int rank, c10d::OpType type, Tensors outputs)
      : c10d::Work(rank, type), outputs_(std::move(outputs)),
        future_(c10::make_intrusive<c10::ivalue::Future>(c10::ListType::create(c10::TensorType::get()))) {}
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }
  Tensors result() override { return outputs_; }
  bool wait(milliseconds timeout) override {
    struct Waiting {
      Waiting() {
        if (waiting++ == 0) nudge_engine();
      }
      ~Waiting() { --waiting; }
    };
    if (isCompleted()) return c10d::Work::wait(timeout);
    Waiting here;
    return c10d::Work::wait(timeout);
  }
  void end(const std::exception_ptr& error) {
    finish(error);
    if (error) future_->setError(error);
    else future_->markCompleted(at::IValue(outputs_));
  }

 private:
  Tensors outputs_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// A communicator and what is known of its health.
struct Communicator {
  int rank, size;
  milliseconds timeout;
  ccl::shared_ptr_class<ccl::kvs> kvs;
  std::optional<ccl::communicator> ccl;
  std::string broken;  // why it can not be used any more; guarded by the engine's mutex
  std::string left;    // who has left it in order; guarded by the engine's mutex
  Clock::time_point left_at{};
  int in_flight = 0;   // parts under way; engine thread only
};
using CommunicatorPtr = std::shared_ptr<Communicator>;

// A collective: one or several parts that oneCCL treats as collectives of their own, one after another.
struct Job {
  CommunicatorPtr comm;
  c10::intrusive_ptr<Work> work;
  Tensors keep;                              // memory that must outlive the collective
  std::function<ccl::event(int64_t)> start;  // hands a part to oneCCL
  int64_t parts;
  std::function<void()> after;  // local work when all is done, may be empty
  milliseconds timeout;
  Clock::time_point deadline{}, moved{};
  int64_t begun = 0;
  std::deque<ccl::event> events{};  // of the parts under way
};

// Whether the process's other threads compute, seen by the processor time that they took of late. DDP waits for a
// future without a word to its work, so `waiting` alone does not tell. Of one thread's use.
class Others {
 public:
  bool idle() {
    const auto now = Clock::now();
    if (now - seen_at_ < microseconds(50)) return idle_;
    const auto used = clock(CLOCK_PROCESS_CPUTIME_ID) - clock(CLOCK_THREAD_CPUTIME_ID);
    idle_ = 4 * (used - used_) < now - seen_at_;
    seen_at_ = now;
    used_ = used;
    return idle_;
  }

 private:
  static std::chrono::nanoseconds clock(clockid_t which) {
    timespec t{};
    clock_gettime(which, &t);
    return std::chrono::seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  }
  Clock::time_point seen_at_ = Clock::now();
  std::chrono::nanoseconds used_{0};
  bool idle_ = false;
};

class Engine {
 public:
  // How the engine polls. While the process waits: without a pause for `spin` after something moved, then every
  // `poll_waiting`; while it computes: every `poll_computing`, to leave it the core.
  static constexpr microseconds spin{1000}, poll_waiting{20}, poll_computing{100};
  static constexpr int max_in_flight = 8;  // parts of a group that are under way at once
  static constexpr milliseconds explanation{1000};  // how long a failure waits for the watch to say which peer is lost
  static constexpr milliseconds farewell{1000};  // how long the thread is waited for at the end
  static constexpr milliseconds patience{4000};     // how long a collective may stand still after a peer has left

  static Engine& get() {
    static auto* engine = new Engine;  // lives until the process ends: a static destructor would race with it
    return *engine;
  }

  void submit(Job job) {
    {
      std::lock_guard l(mutex_);
      if (!job.comm->broken.empty()) throw std::runtime_error(job.comm->broken);
      TORCH_CHECK(!stopping_, "oneccl was shut down");
      submitted_.push_back(std::move(job));
      if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    }
    wake_.notify_one();
  }

  // Somebody waits: end the pause between two polls.
  void nudge() { wake_.notify_one(); }

  // What is pending or submitted later fails with this reason, unless there is an earlier one.
  void break_up(const CommunicatorPtr& comm, const std::string& reason) {
    std::lock_guard l(mutex_);
    if (comm->broken.empty()) comm->broken = reason;
    somebody_lost_ = true;
    wake_.notify_all();
  }

  // A peer has left: what it did not take part in will not end.
  void note_left(const CommunicatorPtr& comm, const std::string& who) {
    std::lock_guard l(mutex_);
    if (!comm->left.empty()) return;
    comm->left = who;
    comm->left_at = Clock::now();
  }

  // Why there is no use in waiting for the others; empty if there may be.
  std::string hopeless(const CommunicatorPtr& comm) {
    std::lock_guard l(mutex_);
    if (!comm->broken.empty() || comm->left.empty() || Clock::now() < comm->left_at + patience)
      return comm->broken;
    return comm->left + " and is still waited for";
  }

  // Breaks up; returns the first reason. The watch knows which peer is lost a moment later than a torn connection
  // shows, so it is waited for.
  std::string explain(const CommunicatorPtr& comm, const std::string& reason) {
    std::unique_lock l(mutex_);
    if (comm->broken.empty()) wake_.wait_for(l, explanation, [&] { return stopping_ || !comm->broken.empty(); });
    if (comm->broken.empty()) comm->broken = comm->left.empty() ? reason : comm->left + ": " + reason;
    somebody_lost_ = true;
    return comm->broken;
  }

  // Of any communicator of this process.
  bool somebody_lost() {
    std::lock_guard l(mutex_);
    return somebody_lost_;
  }

  std::string broken(const CommunicatorPtr& comm) {
    std::lock_guard l(mutex_);
    return comm->broken;
  }

  // Cores for the engine's thread alone; before the first collective.
  void pin(const std::vector<int>& cpus) {
    std::lock_guard l(mutex_);
    cpus_ = cpus;
  }

  void stop() {
    std::unique_lock l(mutex_);
    stopping_ = true;
    wake_.notify_all();
    if (!thread_.joinable()) return;
    // oneCCL may wait for a peer that has ended, for ever: then the end of the process ends the thread.
    const bool ended = wake_.wait_for(l, farewell, [&] { return ended_; });
    std::thread thread;
    thread.swap(thread_);
    l.unlock();
    if (ended) thread.join();
    else thread.detach();
  }

 private:
  void pin_myself() {
    std::lock_guard l(mutex_);
    if (cpus_.empty()) return;
    const int most = *std::max_element(cpus_.begin(), cpus_.end()) + 1;
    cpu_set_t* set = CPU_ALLOC(most);
    CPU_ZERO_S(CPU_ALLOC_SIZE(most), set);
    for (int cpu : cpus_) CPU_SET_S(cpu, CPU_ALLOC_SIZE(most), set);
    if (const int error = pthread_setaffinity_np(pthread_self(), CPU_ALLOC_SIZE(most), set))
      fprintf(stderr, "oneccl: the communication thread can not run on its own cores: %s\n", strerror(error));
    CPU_FREE(set);
  }

  void run() {
    pthread_setname_np(pthread_self(), "oneccl");
    pin_myself();
    prctl(PR_SET_TIMERSLACK, 1000UL);  // ns; by default the kernel adds 50 us to every pause
    Others others;
    std::deque<Job> jobs;
    auto moved_at = Clock::now();  // when a part last began or ended
    for (;;) {
      {
        std::unique_lock l(mutex_);
        if (jobs.empty()) {
          wake_.wait(l, [&] { return stopping_ || !submitted_.empty(); });
          moved_at = Clock::now();
        } else if (submitted_.empty()) {
          const bool idle = waiting > 0 || others.idle();
          if (!idle || Clock::now() - moved_at > spin)
            wake_.wait_for(l, idle ? poll_waiting : poll_computing);
        }
        if (stopping_) {  // what is pending stays so, and is leaked: to destroy an event that did not end is an error
          new std::deque<Job>(std::move(jobs));
          ended_ = true;
          wake_.notify_all();
          return;
        }
        while (!submitted_.empty()) {
          jobs.push_back(std::move(submitted_.front()));
          submitted_.pop_front();
        }
      }
      bool moved = false;
      for (auto job = jobs.begin(); job != jobs.end();) {
        bool ended = false;
        try {
          moved |= advance(*job);
          if (ended = job->begun == job->parts && job->events.empty(); ended && job->after) job->after();
          if (ended) finish(*job);
        } catch (const std::exception& error) {
          give_up(*job, error.what());
          ended = true;
        }
        job = ended ? jobs.erase(job) : std::next(job);
      }
      if (moved) moved_at = Clock::now();
      else std::this_thread::yield();
    }
  }

  // Parts end and begin in order. A communicator that is full does not hold up the others.
  bool advance(Job& job) {
    if (auto reason = broken(job.comm); !reason.empty()) throw std::runtime_error(reason);
    bool moved = false;
    while (!job.events.empty() && job.events.front().test()) {
      job.events.pop_front();
      --job.comm->in_flight;
      moved = true;
    }
    while (job.begun < job.parts && job.comm->in_flight < max_in_flight) {
      if (job.begun == 0) job.deadline = Clock::now() + job.timeout;
      job.events.push_back(job.start(job.begun));
      ++job.begun;
      ++job.comm->in_flight;
      moved = true;
    }
    const auto now = Clock::now();
    if (moved) job.moved = now;
    else if (!job.events.empty()) {
      if (now > job.deadline)
        throw std::runtime_error("a collective did not end within " + std::to_string(job.timeout.count() / 1000) + " s");
      if (now > job.moved + patience) {
        std::lock_guard l(mutex_);
        if (!job.comm->left.empty() && job.comm->broken.empty())
          job.comm->broken = job.comm->left + " and takes no part in a collective";
      }
    }
    return moved;
  }

  void finish(Job& job) {
    job.keep.clear();
    job.work->end(nullptr);
  }

  void give_up(Job& job, const std::string& error) {
    const auto reason = explain(job.comm, error);
    // oneCCL may still write there: the events and their memory are leaked.
    new std::deque<ccl::event>(std::move(job.events));
    new Tensors(job.keep);
    new Tensors(job.work->result());
    job.work->end(std::make_exception_ptr(std::runtime_error(reason)));
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> submitted_;
  bool stopping_ = false, ended_ = false;  // the thread shall end, and has
  bool somebody_lost_ = false;
  std::thread thread_;
  std::vector<int> cpus_;
};

void nudge_engine() { Engine::get().nudge(); }

// ---------------------------------------------------------------------------------------------------- group

// The ranks of a group while it is made: they come together in the store, and watch each other from then on.
// A rank that never came can not be told from a late one: that takes the whole timeout.
class Peers {
 public:
  // `name` is this rank's for messages, `keeper` is that of the store's process.
  Peers(c10::intrusive_ptr<c10d::Store> store, int rank, int size, milliseconds timeout, const std::string& address,
        const std::string& name, std::string keeper)
      : comm(std::make_shared<Communicator>()), store_(std::move(store)), keeper_(std::move(keeper)) {
    comm->rank = rank;
    comm->size = size;
    comm->timeout = timeout;
    // The same store serves again when a group is made anew: number the keys.
    ask([&] { key_ = "oneccl/" + std::to_string(store_->add("oneccl/made/" + std::to_string(rank), 1)) + "/"; });
    if (size == 1) return;
    if (rank == 0) await_all(address, name);
    else come(name);
  }

  void set(const std::string& key, const std::string& value) {
    ask([&] { store_->set(key_ + key, std::vector<uint8_t>(value.begin(), value.end())); });
  }

  // Waits until it is there.
  std::string get(const std::string& key, milliseconds more = milliseconds(0)) {
    const auto deadline = Clock::now() + comm->timeout + more;
    milliseconds pause(1);
    while (true) {
      bool found = false;
      ask([&] { found = store_->check({key_ + key}); });  // a wait with a limit writes warnings
      if (found) break;
      std::this_thread::sleep_for(pause);
      pause = std::min(pause * 2, milliseconds(100));
      auto reason = Engine::get().hopeless(comm);
      if (reason.empty() && Clock::now() > deadline)
        reason = "the other ranks did not come within " + seconds(comm->timeout);
      if (!reason.empty()) fail(reason);
    }
    std::vector<uint8_t> value;
    ask([&] { value = store_->get(key_ + key); });
    return {value.begin(), value.end()};
  }

  [[noreturn]] void fail(const std::string& reason) {
    Engine::get().break_up(comm, reason);
    throw std::runtime_error(Engine::get().broken(comm));
  }

  static std::string seconds(milliseconds time) { return std::to_string(time.count() / 1000) + " s"; }

  const CommunicatorPtr comm;

 private:
  static constexpr milliseconds kNearby{4000};  // how long a rank may be in the store and not with the watch

  template <class Call>
  void ask(Call call) {
    try {
      call();
    } catch (const std::exception& error) {
      const std::string what = error.what();
      throw std::runtime_error(Engine::get().explain(
          comm, keeper_ + " is lost: it keeps the store, which fails: " + what.substr(0, what.find('\n'))));
    }
  }

  void watch_as(const std::string& name, const std::string& secret) {
    watch_ = std::make_unique<PeerWatch>(
        PeerWatch::Self{comm->rank, name, secret}, PeerWatch::Limits{},
        [weak = std::weak_ptr(comm)](PeerWatch::Event event, const std::string& what) {
          auto comm = weak.lock();
          if (!comm) return;
          if (event == PeerWatch::Event::lost) Engine::get().break_up(comm, what);
          else Engine::get().note_left(comm, what);
        });
  }

  // Rank 0's address goes through the store; whoever knows the secret in it is a peer.
  void await_all(const std::string& address, const std::string& name) {
    std::string secret;
    std::random_device random;
    for (int i = 0; i < 4; ++i) secret += std::to_string(random()) + ".";
    watch_as(name, secret);
    set("watch", address + "\n" + std::to_string(watch_->listen_on(address)) + "\n" + secret + "\n" + name);
    const auto verdict = missing();
    set("all", verdict);
    if (!verdict.empty()) fail(verdict);
  }

  void come(const std::string& name) {
    set("came/" + std::to_string(comm->rank), name);
    std::istringstream sent(get("watch"));
    std::string place, port, secret, first;
    for (auto* line : {&place, &port, &secret, &first}) std::getline(sent, *line);
    watch_as(name, secret);
    watch_->join(place, std::atoi(port.c_str()), first);
    const auto verdict = get("all", milliseconds(2000));  // rank 0 knows better who is missing
    if (!verdict.empty()) fail(verdict);
  }

  // Waits until all have come; else what is to be said of who has not.
  std::string missing() {
    const auto begun = Clock::now();
    auto asked = begun;
    std::map<int, Clock::time_point> nearby;
    while (true) {
      const auto met = watch_->met();
      if (int(met.size()) == comm->size - 1) return "";
      if (auto reason = Engine::get().hopeless(comm); !reason.empty()) return reason;
      std::this_thread::sleep_for(milliseconds(2));
      const auto now = Clock::now();
      if (now < asked + milliseconds(500)) continue;
      asked = now;
      std::string late;
      for (int rank = 1; rank < comm->size; ++rank) {
        if (met.count(rank)) continue;
        late += (late.empty() ? "" : ", ") + std::to_string(rank);
        const auto came = key_ + "came/" + std::to_string(rank);
        bool is_nearby = false;
        ask([&] { is_nearby = store_->check({came}); });
        if (is_nearby && nearby.emplace(rank, now).first->second + kNearby <= now)
          return get("came/" + std::to_string(rank)) + " is lost: it came and was not heard of again";
      }
      if (now > begun + comm->timeout) return "rank " + late + " did not come within " + seconds(comm->timeout);
    }
  }

  const c10::intrusive_ptr<c10d::Store> store_;
  const std::string keeper_;
  std::string key_;
  std::unique_ptr<PeerWatch> watch_;
};

// When a peer dies at the wrong moment, oneCCL throws from a destructor, which ends the process. A thread that has
// nothing but oneCCL's own to lose says so instead, and sleeps for ever.
thread_local std::function<void()> instead_of_abort;
std::terminate_handler usual_end = std::abort;

void sleep_instead_of_abort() {
  if (instead_of_abort) {
    instead_of_abort();
    for (;;) pause();
  }
  usual_end();
  std::abort();
}

// Makes the communicator. Blocks until all ranks have done so.
void meet(Peers& peers) {
  struct Meeting {
    std::mutex mutex;
    std::condition_variable done;
    bool has_address = false, ended = false;
    std::string address;
    std::exception_ptr error;
  };
  auto meeting = std::make_shared<Meeting>();
  const auto comm = peers.comm;
  const auto deadline = Clock::now() + comm->timeout;
  if (comm->rank != 0) meeting->address = peers.get("oneccl");
  auto end = [meeting](const std::exception_ptr& error) {
    std::lock_guard l(meeting->mutex);
    meeting->ended = true;
    meeting->error = error;
    meeting->done.notify_all();
  };
  // oneCCL waits for peers without limit, so it waits on a thread that can be left behind.
  std::thread([meeting, comm, end] {
    std::exception_ptr error;
    instead_of_abort = [&] { end(std::make_exception_ptr(std::runtime_error("oneCCL failed in meeting the ranks"))); };
    try {
      if (comm->rank == 0) {
        comm->kvs = ccl::create_main_kvs();
        auto address = comm->kvs->get_address();
        std::lock_guard l(meeting->mutex);
        meeting->address.assign(address.begin(), address.end());
        meeting->has_address = true;
        meeting->done.notify_all();
      } else {
        ccl::kvs::address_type address;
        if (meeting->address.size() != address.size()) throw std::runtime_error("oneccl: rank 0 sent no address");
        std::copy(meeting->address.begin(), meeting->address.end(), address.begin());
        comm->kvs = ccl::create_kvs(address);
      }
      comm->ccl.emplace(ccl::create_communicator(comm->size, comm->rank, comm->kvs));
    } catch (...) {
      error = std::current_exception();
    }
    instead_of_abort = nullptr;
    end(error);
  }).detach();
  std::unique_lock l(meeting->mutex);
  auto await = [&](const bool& done) {
    while (!meeting->done.wait_for(l, milliseconds(50), [&] { return done || meeting->ended; })) {
      auto reason = Engine::get().hopeless(comm);
      if (reason.empty() && Clock::now() > deadline) reason = "the ranks did not meet in oneCCL within the timeout";
      if (!reason.empty()) peers.fail(reason);
    }
    if (meeting->error) {
      std::string what = "oneCCL made no communicator";
      try {
        std::rethrow_exception(meeting->error);
      } catch (const std::exception& error) {
        what = error.what();
      }
      throw std::runtime_error(Engine::get().explain(comm, what));
    }
  };
  if (comm->rank == 0) {
    await(meeting->has_address);
    peers.set("oneccl", meeting->address);
  }
  await(meeting->ended);
}

class Group : public c10d::Backend {
 public:
  explicit Group(std::shared_ptr<Peers> peers)
      : Backend(peers->comm->rank, peers->comm->size), peers_(std::move(peers)), comm_(peers_->comm) {
    try {
      meet(*peers_);
    } catch (...) {
      new CommunicatorPtr(comm_);  // the meeting may go on
      throw;
    }
    // oneCCL ends its transport with the last communicator; ranks that ended theirs and ranks that did not, because
    // a subgroup still lived there, would never meet again. So the first communicator lives as long as the process.
    static const auto* first = new CommunicatorPtr(comm_);
    (void)first;
  }

  ~Group() override {
    if (Engine::get().somebody_lost()) new CommunicatorPtr(comm_);
  }

  const std::string getBackendName() const override { return "oneccl"; }
  void setTimeout(milliseconds timeout) override { comm_->timeout = timeout; }
  void abort() override { Engine::get().break_up(comm_, "the group was aborted"); }
  void shutdown() override {}
  void setSequenceNumberForGroup() override {}
  uint64_t getSequenceNumberForGroup() override { return submitted_; }

  c10::intrusive_ptr<c10d::Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& o) override {
    return reduce_in_place(c10d::OpType::ALLREDUCE, single(tensors), o.reduceOp, o.timeout,
                           [comm = comm_](char* at, size_t count, const Tensor& t, ccl::reduction op) {
      return ccl::allreduce(at, at, count, datatype_of(t), op, *comm->ccl);
    });
  }

  c10::intrusive_ptr<c10d::Work> reduce(Tensors& tensors, const c10d::ReduceOptions& o) override {
    return reduce_in_place(c10d::OpType::REDUCE, single(tensors), o.reduceOp, o.timeout,
                           [comm = comm_, root = int(o.rootRank)](char* at, size_t count, const Tensor& t,
                                                                  ccl::reduction op) {
      return ccl::reduce(at, at, count, datatype_of(t), op, root, *comm->ccl);
    });
  }

  c10::intrusive_ptr<c10d::Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& o) override {
    auto t = single(tensors), flat = t.contiguous();
    return submit(c10d::OpType::BROADCAST, {t}, {flat}, o.timeout, [comm = comm_, flat, root = int(o.rootRank)] (int64_t) {
      return ccl::broadcast(flat.data_ptr(), flat.numel(), datatype_of(flat), root, *comm->ccl);
    }, back(flat, t));
  }

  c10::intrusive_ptr<c10d::Work> allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                           const c10d::AllgatherOptions& o) override {
    const auto& in = single(inputs);
    TORCH_CHECK_VALUE(outputs.size() == 1 && int(outputs[0].size()) == size_, "one output a rank is needed");
    auto flat = at::empty({size_, in.numel()}, in.options());
    return gather_flat(c10d::OpType::ALLGATHER, outputs[0], in.contiguous(), flat, o.timeout,
                       unpack(flat, outputs[0]));
  }

  c10::intrusive_ptr<c10d::Work> _allgather_base(Tensor& output, Tensor& input,
                                                 const c10d::AllgatherOptions& o) override {
    check_dense(input);
    check_dense(output);
    TORCH_CHECK_VALUE(output.numel() == input.numel() * size_, "the output must hold every rank's input");
    auto flat = output.contiguous();
    return gather_flat(c10d::OpType::_ALLGATHER_BASE, {output}, input.contiguous(), flat, o.timeout,
                       back(flat, output));
  }

  c10::intrusive_ptr<c10d::Work> gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                        const c10d::GatherOptions& o) override {
    const auto& in = single(inputs);
    const bool root = rank_ == o.rootRank;
    TORCH_CHECK_VALUE(!root || (outputs.size() == 1 && int(outputs[0].size()) == size_),
                      "one output a rank is needed at the root");
    auto contiguous = in.contiguous();
    auto flat = at::empty({root ? size_ : 0, in.numel()}, in.options());
    std::vector<size_t> sent(size_, 0), received(size_, root ? in.numel() : 0);
    sent[o.rootRank] = in.numel();
    return exchange(c10d::OpType::GATHER, root ? outputs[0] : Tensors{}, contiguous, flat, sent, received, o.timeout,
                    root ? unpack(flat, outputs[0]) : nullptr);
  }

  c10::intrusive_ptr<c10d::Work> scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                         const c10d::ScatterOptions& o) override {
    auto out = single(outputs);
    const bool root = rank_ == o.rootRank;
    TORCH_CHECK_VALUE(!root || (inputs.size() == 1 && int(inputs[0].size()) == size_),
                      "one input a rank is needed at the root");
    auto flat = root ? pack(inputs[0], out) : at::empty({0}, out.options());
    auto received_flat = at::empty({out.numel()}, out.options());
    std::vector<size_t> sent(size_, root ? out.numel() : 0), received(size_, 0);
    received[o.rootRank] = out.numel();
    return exchange(c10d::OpType::SCATTER, {out}, flat, received_flat, sent, received, o.timeout,
                    [out, received_flat]() mutable { out.copy_(received_flat.view_as(out)); });
  }

  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(Tensor& output, Tensor& input,
                                                      const c10d::ReduceScatterOptions& o) override {
    check_dense(input);
    check_dense(output);
    TORCH_CHECK_VALUE(input.numel() == output.numel() * size_, "the input must hold a part for every rank");
    auto in = input.contiguous(), flat = output.contiguous(), out = output;
    const auto op = reduction_of(o.reduceOp, in);
    return submit(c10d::OpType::_REDUCE_SCATTER_BASE, {out}, {in, flat}, o.timeout, [comm = comm_, in, flat, op] (int64_t) {
      return ccl::reduce_scatter(in.data_ptr(), flat.data_ptr(), flat.numel(), datatype_of(in), op, *comm->ccl);
    }, averaged(flat, out, o.reduceOp));
  }

  c10::intrusive_ptr<c10d::Work> reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                                const c10d::ReduceScatterOptions& o) override {
    auto out = single(outputs);
    TORCH_CHECK_VALUE(inputs.size() == 1 && int(inputs[0].size()) == size_, "one input a rank is needed");
    auto flat = pack(inputs[0], out);
    return _reduce_scatter_base(out, flat, o);
  }

  c10::intrusive_ptr<c10d::Work> alltoall_base(Tensor& output, Tensor& input, std::vector<int64_t>& output_sizes,
                                               std::vector<int64_t>& input_sizes,
                                               const c10d::AllToAllOptions& o) override {
    check_dense(input);
    check_dense(output);
    auto in = input.contiguous(), flat = output.contiguous();
    return exchange(c10d::OpType::ALLTOALL_BASE, {output}, in, flat, counts(in, input_sizes),
                    counts(flat, output_sizes), o.timeout, back(flat, output));
  }

  c10::intrusive_ptr<c10d::Work> alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& o) override {
    TORCH_CHECK_VALUE(int(outputs.size()) == size_ && int(inputs.size()) == size_, "one tensor a rank is needed");
    std::vector<size_t> sent, received;
    Tensors parts;
    for (auto& t : inputs) { check_dense(t); sent.push_back(t.numel()); parts.push_back(t.reshape({-1})); }
    size_t total = 0;
    for (auto& t : outputs) { check_dense(t); received.push_back(t.numel()); total += t.numel(); }
    auto flat = at::empty({int64_t(total)}, inputs[0].options());
    return exchange(c10d::OpType::ALLTOALL, outputs, at::cat(parts), flat, sent, received, o.timeout,
                    [outputs, flat]() mutable {
      int64_t at = 0;
      for (auto& t : outputs) { t.copy_(flat.narrow(0, at, t.numel()).view_as(t)); at += t.numel(); }
    });
  }

  c10::intrusive_ptr<c10d::Work> send(Tensors& tensors, int to, int) override {
    auto flat = single(tensors).contiguous();
    return submit(c10d::OpType::SEND, {flat}, {}, kUnsetTimeout, [comm = comm_, flat, to] (int64_t) {
      return ccl::send(flat.data_ptr(), flat.numel(), datatype_of(flat), to, *comm->ccl);
    }, nullptr);
  }

  c10::intrusive_ptr<c10d::Work> recv(Tensors& tensors, int from, int) override {
    auto t = single(tensors), flat = t.contiguous();
    return submit(c10d::OpType::RECV, {t}, {flat}, kUnsetTimeout, [comm = comm_, flat, from] (int64_t) {
      return ccl::recv(flat.data_ptr(), flat.numel(), datatype_of(flat), from, *comm->ccl);
    }, back(flat, t));
  }

  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& o) override {
    auto t = at::zeros({1}, at::kInt);  // a small all-reduce, so that it keeps its place among the collectives
    return submit(c10d::OpType::BARRIER, {t}, {}, o.timeout, [comm = comm_, t] (int64_t) {
      return ccl::allreduce(t.data_ptr(), t.data_ptr(), 1, ccl::datatype::int32, ccl::reduction::sum, *comm->ccl);
    }, nullptr);
  }

 private:
  static constexpr milliseconds kUnsetTimeout = c10d::kUnsetTimeout;

  // A collective to which every rank brings tensors of the same sizes: if they are empty, there is nothing to do.
  c10::intrusive_ptr<c10d::Work> submit(c10d::OpType type, Tensors outputs, Tensors keep, milliseconds timeout,
                                        std::function<ccl::event(int64_t)> start, std::function<void()> after,
                                        int64_t parts = 1) {
    bool empty = true;
    for (const auto& t : keep) empty = empty && t.numel() == 0;
    for (const auto& t : outputs) empty = empty && t.numel() == 0;
    if (!empty)
      return enqueue(type, std::move(outputs), std::move(keep), timeout, std::move(start), std::move(after), parts);
    ++submitted_;
    auto work = c10::make_intrusive<Work>(rank_, type, std::move(outputs));
    work->end(nullptr);
    return work;
  }

  c10::intrusive_ptr<c10d::Work> enqueue(c10d::OpType type, Tensors outputs, Tensors keep, milliseconds timeout,
                                         std::function<ccl::event(int64_t)> start, std::function<void()> after,
                                         int64_t parts) {
    ++submitted_;
    auto work = c10::make_intrusive<Work>(rank_, type, std::move(outputs));
    Engine::get().submit({comm_, work, std::move(keep), std::move(start), parts, std::move(after),
                          timeout == kUnsetTimeout ? comm_->timeout : timeout});
    return work;
  }

  // In parts: one part's sums are computed while another's bytes travel, and a part stays in the cache.
  template <class Start>
  c10::intrusive_ptr<c10d::Work> reduce_in_place(c10d::OpType type, Tensor t, const c10d::ReduceOp& how,
                                                 milliseconds timeout, Start start) {
    auto flat = t.contiguous();
    const auto op = reduction_of(how, t);
    const int64_t part = std::max<int64_t>(1, part_bytes / 2 * size_ / flat.element_size());
    const int64_t parts = std::max<int64_t>(1, (flat.numel() + part - 1) / part);
    return submit(type, {t}, {flat}, timeout, [=](int64_t number) {
      const int64_t from = number * part, count = std::min(part, flat.numel() - from);
      return start(static_cast<char*>(flat.data_ptr()) + from * flat.element_size(), count, flat, op);
    }, averaged(flat, t, how), parts);
  }

  c10::intrusive_ptr<c10d::Work> gather_flat(c10d::OpType type, Tensors outputs, Tensor in, Tensor flat,
                                             milliseconds timeout, std::function<void()> after) {
    return submit(type, std::move(outputs), {in, flat}, timeout, [comm = comm_, in, flat] (int64_t) {
      std::vector<size_t> counts(comm->size, in.numel());
      return ccl::allgatherv(in.data_ptr(), in.numel(), flat.data_ptr(), counts, datatype_of(in), *comm->ccl);
    }, std::move(after));
  }

  // What a rank brings and gets may be empty while others' is not, so it takes part in any case.
  c10::intrusive_ptr<c10d::Work> exchange(c10d::OpType type, Tensors outputs, Tensor in, Tensor flat,
                                          std::vector<size_t> sent, std::vector<size_t> received,
                                          milliseconds timeout, std::function<void()> after) {
    return enqueue(type, std::move(outputs), {in, flat}, timeout, [comm = comm_, in, flat, sent, received] (int64_t) {
      return ccl::alltoallv(in.data_ptr(), sent, flat.data_ptr(), received, datatype_of(in), *comm->ccl);
    }, std::move(after), 1);
  }

  // From a contiguous copy back to where it came from.
  static std::function<void()> back(Tensor flat, Tensor to) {
    if (flat.is_same(to)) return nullptr;
    return [=]() mutable { to.copy_(flat.view_as(to)); };
  }

  std::function<void()> averaged(Tensor flat, Tensor to, const c10d::ReduceOp& how) const {
    auto copy = back(flat, to);
    if (how != c10d::ReduceOp::AVG) return copy;
    return [=, size = size_]() mutable { flat.div_(size); if (copy) copy(); };
  }

  static std::function<void()> unpack(Tensor flat, Tensors outputs) {
    return [=]() mutable {
      for (size_t r = 0; r < outputs.size(); ++r) outputs[r].copy_(flat[r].view_as(outputs[r]));
    };
  }

  static Tensor pack(const Tensors& parts, const Tensor& like) {
    Tensors flat;
    for (const auto& t : parts) {
      check_dense(t);
      TORCH_CHECK_VALUE(t.numel() == like.numel() && t.scalar_type() == like.scalar_type(), "parts must be alike");
      flat.push_back(t.reshape({-1}));
    }
    return at::cat(flat);
  }

  std::vector<size_t> counts(const Tensor& t, const std::vector<int64_t>& sizes) const {
    const int64_t row = t.dim() && t.size(0) ? t.numel() / t.size(0) : 1;
    if (sizes.empty()) {
      TORCH_CHECK_VALUE(t.dim() && t.size(0) % size_ == 0, "the first dimension must be a multiple of the ranks");
      return std::vector<size_t>(size_, t.numel() / size_);
    }
    std::vector<size_t> found;
    for (auto n : sizes) found.push_back(n * row);
    return found;
  }

  const std::shared_ptr<Peers> peers_;
  const CommunicatorPtr comm_;
  std::atomic<uint64_t> submitted_{0};
};

c10::intrusive_ptr<c10d::Backend> create(std::shared_ptr<Peers> peers) {
  static std::once_flag once;
  std::call_once(once, [] {
    ccl::init();
    usual_end = std::set_terminate(sleep_instead_of_abort);
    // oneCCL's static destructors would meet its own threads, and whatever was leaked, at work.
    on_exit([](int status, void*) { fflush(nullptr); _exit(status); }, nullptr);
  });
  return c10::make_intrusive<Group>(std::move(peers));
}
}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::class_<Peers, std::shared_ptr<Peers>>(m, "Peers")
      .def(py::init<c10::intrusive_ptr<c10d::Store>, int, int, milliseconds, std::string, std::string, std::string>(),
           py::call_guard<py::gil_scoped_release>())
      .def("set", &Peers::set, py::call_guard<py::gil_scoped_release>())
      .def("get", [](Peers& peers, const std::string& key) { return peers.get(key); },
           py::call_guard<py::gil_scoped_release>());
  m.def("create", &create, py::call_guard<py::gil_scoped_release>());
  m.def("pin", [](const std::vector<int>& cpus) { Engine::get().pin(cpus); });
  m.def("stop", [] { Engine::get().stop(); }, py::call_guard<py::gil_scoped_release>());
  m.def("version", [] { return std::string(ccl::get_library_version().full); });
}
