// A heartbeat among the ranks of a group, so that a lost peer is noticed though nobody is sending to it.
//
// Rank 0 listens, the others connect and say who they are. Both sides send a sign of life every `beat`. A
// connection that ends without a goodbye, or is silent for `silence`, is a lost peer; rank 0 tells all others
// who it was, and who left in order. All happens on a thread of its own, which needs no interpreter.
//
// Messages: one byte of kind, one of length, then so many bytes of text.
#pragma once
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <list>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

class PeerWatch {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Event { lost, left };
  using Report = std::function<void(Event, const std::string&)>;
  struct Limits {
    std::chrono::milliseconds beat{500}, silence{4000};
  };
  struct Self {
    int rank;
    std::string name;    // for messages: "rank R on HOST"
    std::string secret;  // what a connection must know to be taken for a peer
  };

  // `report` is called from the watch's thread, with "NAME ...".
  PeerWatch(Self self, Limits limits, Report report)
      : self_(std::move(self)), limits_(limits), report_(std::move(report)), wake_(eventfd(0, EFD_CLOEXEC)) {}

  PeerWatch(const PeerWatch&) = delete;
  PeerWatch& operator=(const PeerWatch&) = delete;

  // Says goodbye: what ends in order is not lost.
  ~PeerWatch() {
    const uint64_t one = 1;
    if (write(wake_, &one, sizeof one) < 0) {}
    if (thread_.joinable()) thread_.join();
    for (auto& peer : peers_) close(peer.fd);
    if (listener_ >= 0) close(listener_);
    close(wake_);
  }

  // Rank 0: begin to watch; returns the port.
  int listen_on(const std::string& address) {
    auto where = resolve(address, 0);
    listener_ = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener_ < 0 || bind(listener_, as_address(where), length(where)) < 0 || listen(listener_, 1024) < 0)
      throw std::runtime_error("can not listen on " + address + ": " + std::strerror(errno));
    socklen_t n = sizeof where;
    getsockname(listener_, as_address(where), &n);
    thread_ = std::thread([this] { run(); });
    return ntohs(where.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(where).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(where).sin_port);
  }

  // The others: connect to rank 0, called `name`, and begin to watch.
  void join(const std::string& address, int port, const std::string& name) {
    auto where = resolve(address, port);
    const int fd = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    auto refuse = [&](const char* why) {
      close(fd);
      throw std::runtime_error(name + " is lost: it can not be reached at " + address + ": " + why);
    };
    if (connect(fd, as_address(where), length(where)) < 0) {
      if (errno != EINPROGRESS) refuse(std::strerror(errno));
      pollfd waiting{fd, POLLOUT, 0};
      if (poll(&waiting, 1, int(limits_.silence.count())) <= 0) refuse("no answer");
      int error = 0;
      socklen_t n = sizeof error;
      getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n);
      if (error) refuse(std::strerror(error));
    }
    peers_.push_back({prepared(fd), 0, name, true, Clock::now(), {}});
    send_to(peers_.back(), 'h', self_.secret + std::to_string(self_.rank) + " " + self_.name);
    thread_ = std::thread([this] { run(); });
  }

  // Rank 0: who has ever joined.
  std::set<int> met() {
    std::lock_guard l(met_mutex_);
    return met_;
  }

 private:
  struct Peer {
    int fd, rank;
    std::string name;
    bool known;  // whether it said who it is
    Clock::time_point heard;
    std::string received;
  };

  static sockaddr* as_address(sockaddr_storage& s) { return reinterpret_cast<sockaddr*>(&s); }
  static socklen_t length(const sockaddr_storage& s) {
    return s.ss_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  }
  static sockaddr_storage resolve(const std::string& address, int port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found) || !found)
      throw std::runtime_error("no host is called " + address);
    sockaddr_storage storage{};
    std::memcpy(&storage, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return storage;
  }
  static int prepared(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
  }

  void run() {
    pthread_setname_np(pthread_self(), "peer_watch");
    auto next_beat = Clock::now();
    while (true) {
      std::vector<pollfd> fds{{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};
      for (auto& peer : peers_) fds.push_back({peer.fd, POLLIN, 0});
      poll(fds.data(), fds.size(), int(std::max<int64_t>(1, left(next_beat))));
      if (fds[0].revents) break;
      const auto now = Clock::now();
      size_t number = 2;
      for (auto peer = peers_.begin(); peer != peers_.end();) {
        const bool readable = number < fds.size() && fds[number++].revents;
        std::string lost = readable ? hear(*peer, now) : "";
        // This thread may have been the one that slept: only what stays silent after it has listened is lost.
        if (lost.empty() && !readable && now - peer->heard > limits_.silence)
          lost = "is lost: it gave no sign of life for " + std::to_string(limits_.silence.count() / 1000) + " s";
        if (lost.empty()) {
          ++peer;
          continue;
        }
        const Peer gone = std::move(*peer);
        peer = peers_.erase(peer);
        close(gone.fd);
        if (!gone.known) continue;
        if (lost == kGoodbye) tell(Event::left, gone.name + " has left");
        else tell(Event::lost, gone.name + " " + lost);
      }
      if (fds[1].revents) admit(now);
      if (now >= next_beat) {
        for (auto& peer : peers_) send_to(peer, 'b', "");
        next_beat = now + limits_.beat;
      }
    }
    for (auto& peer : peers_) send_to(peer, 'g', "");
  }

  static int64_t left(Clock::time_point until) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  }

  void admit(Clock::time_point now) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) peers_.push_back({prepared(fd), -1, "", false, now, {}});
  }

  // What is to be said of the peer if it is to be dropped, else nothing.
  std::string hear(Peer& peer, Clock::time_point now) {
    char buffer[4096];
    const auto n = recv(peer.fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return "";
    if (n <= 0) return "is lost: its process ended";
    peer.heard = now;
    peer.received.append(buffer, n);
    while (peer.received.size() >= 2) {
      const size_t size = 2 + static_cast<unsigned char>(peer.received[1]);
      if (peer.received.size() < size) break;
      const char kind = peer.received[0];
      const auto text = peer.received.substr(2, size - 2);
      peer.received.erase(0, size);
      if (!peer.known && !introduce(peer, kind, text)) return kGoodbye;
      if (kind == 'g') return kGoodbye;
      if (kind == 'l') tell(Event::lost, text);
      if (kind == 'e') tell(Event::left, text);
    }
    return "";
  }

  bool introduce(Peer& peer, char kind, const std::string& text) {
    if (kind != 'h' || text.compare(0, self_.secret.size(), self_.secret) != 0) return false;
    const auto rest = text.substr(self_.secret.size());
    const auto space = rest.find(' ');
    if (space == std::string::npos || space == 0 || space > 9) return false;
    peer.rank = std::atoi(rest.substr(0, space).c_str());
    peer.name = rest.substr(space + 1);
    peer.known = true;
    std::lock_guard l(met_mutex_);
    met_.insert(peer.rank);
    return true;
  }

  void tell(Event event, const std::string& what) {
    for (auto& peer : peers_) send_to(peer, event == Event::lost ? 'l' : 'e', what);
    report_(event, what);
  }

  static void send_to(Peer& peer, char kind, std::string text) {
    text.resize(std::min<size_t>(text.size(), 255));
    const auto message = std::string{kind, static_cast<char>(text.size())} + text;
    // What does not fit the socket's buffer belongs to a peer that reads nothing: its silence will show.
    if (send(peer.fd, message.data(), message.size(), MSG_NOSIGNAL) < 0) {}
  }

  static inline const std::string kGoodbye = "goodbye";
  Self self_;
  Limits limits_;
  Report report_;
  int wake_, listener_ = -1;
  std::list<Peer> peers_;
  std::mutex met_mutex_;
  std::set<int> met_;
  std::thread thread_;
};
