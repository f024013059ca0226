package purge_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/node/purge"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// watched is nodes that tell a gateway of purges.
type watched struct {
	ringmodv1.UnimplementedClusterServiceServer

	t        *testing.T
	listener *bufconn.Listener
	messages chan *ringmodv1.WatchViewResponse // nil ends a stream
	watches  chan struct{}
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{t: t, listener: bufconn.Listen(1 << 16), messages: make(chan *ringmodv1.WatchViewResponse), watches: make(chan struct{}, 100)}
	server := grpc.NewServer()
	ringmodv1.RegisterClusterServiceServer(server, w)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(w.listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return w
}

func (w *watched) WatchView(_ *ringmodv1.WatchViewRequest, stream grpc.ServerStreamingServer[ringmodv1.WatchViewResponse]) error {
	w.watches <- struct{}{}
	for {
		select {
		case msg := <-w.messages:
			if msg == nil {
				return status.Error(codes.Unavailable, "it stops")
			}
			if err := stream.Send(msg); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (w *watched) Usable(id string) bool { return id == "a" }

func (w *watched) Conn(id string) (grpc.ClientConnInterface, error) {
	conn, err := grpc.NewClient("passthrough:///"+id, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.listener.DialContext(ctx) }))
	if err == nil {
		w.t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, err
}

// A gateway applies what a node tells, and asks again when the stream ends or falls silent.
func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWatched(t)
		view := newWorld(t, "a", "b").view
		told := make(chan bool, 10)
		private := ""
		f := &purge.Follower{
			Set: purge.NewSet(), View: func() *ring.View { return view }, Changed: func() <-chan struct{} { return nil }, Region: "r", Nodes: w, Logger: slog.New(slog.DiscardHandler),
			OnPrivate: func(patterns string) { private = patterns },
			Told:      func(purged func(string) bool) { told <- purged(bad) && !purged(good) },
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		<-w.watches
		if f.Heard() {
			t.Error("it has heard before anybody has told")
		}
		w.messages <- &ringmodv1.WatchViewResponse{Private: "corp.example.com"}
		synctest.Wait()
		if !f.Heard() || private != "corp.example.com" {
			t.Errorf("it has not heard that nothing is purged and what is private: %q", private)
		}
		tombstone := &ringmodv1.Tombstone{Name: bad, Epoch: 2}
		w.messages <- &ringmodv1.WatchViewResponse{Tombstones: []*ringmodv1.Tombstone{{}, tombstone}}
		if !<-told || !f.Set.Purged(bad) {
			t.Error("a purge was not applied")
		}
		w.messages <- nil
		<-w.watches
		w.messages <- &ringmodv1.WatchViewResponse{Tombstones: []*ringmodv1.Tombstone{tombstone}}
		w.messages <- &ringmodv1.WatchViewResponse{Tombstones: []*ringmodv1.Tombstone{{Name: bad, Epoch: 3, Lifted: true}}}
		synctest.Wait()
		if len(told) != 0 || f.Set.Purged(bad) {
			t.Errorf("told %d times of what is known, purged: %v", len(told), f.Set.Purged(bad))
		}
		start := time.Now()
		<-w.watches // nobody says anything any more
		if took := time.Since(start); took < 20*time.Second || took > 30*time.Second {
			t.Errorf("silence is noticed after %v", took)
		}
		cancel()
		<-done
	})
}
