package admin_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/scrub"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// scrubber finds one bad object, unless err says that it cannot work.
type scrubber struct {
	id     string
	err    error
	begun  chan struct{} // nil, or closed when it has begun and then waits for the end
	ended  chan struct{}
	rate   int64
	all    bool
	called int
}

func (s *scrubber) ScrubNow(ctx context.Context, rate int64, all bool, report func(scrub.Progress) error) error {
	s.rate, s.all = rate, all
	s.called++
	if s.err != nil {
		return s.err
	}
	if s.begun != nil {
		close(s.begun)
		<-ctx.Done()
		close(s.ended)
		return context.Cause(ctx)
	}
	for i := range int64(2) {
		p := scrub.Progress{Objects: i, TotalObjects: 1, Bytes: 10 * i, TotalBytes: 10}
		if i == 1 {
			p.Findings = []scrub.Finding{{Name: "of " + s.id, Text: "bad\nbytes", Repaired: s.id != "n2"}}
		}
		if err := report(p); err != nil {
			return err
		}
	}
	return nil
}

// scrubbed are nodes that can scrub, and gateways that cannot.
type scrubbed struct {
	*cluster

	scrubbers map[string]*scrubber
}

func newScrubbed(t *testing.T) *scrubbed {
	t.Helper()
	gateway := entry("g1", "eu", "")
	gateway.Role = ring.Gateway
	c := &scrubbed{newCluster(t, entry("n1", "eu", ""), entry("n2", "eu", ""), entry("n3", "us", ""), gateway), map[string]*scrubber{}}
	for _, e := range c.entries {
		if e.Role != ring.Node {
			continue
		}
		cfg := c.config(e.ID)
		c.scrubbers[e.ID] = &scrubber{id: e.ID}
		cfg.Scrubber = c.scrubbers[e.ID]
		c.reserve(e.ID, cfg)
	}
	return c
}

// reserve replaces a member by one with that configuration.
func (c *scrubbed) reserve(id string, cfg admin.Config) {
	listener := bufconn.Listen(64 << 10)
	server := grpc.NewServer(wire.ServerOptions(new(wire.Pool))...)
	admin.Register(server, cfg)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+id, append(wire.DialOptions(new(wire.Pool), wire.Near),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.conns[id] = conn
	c.t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
}

// scrub returns the last message of each node, and what was found.
func (c *scrubbed) scrub(via string, req *ringmodv1.ScrubRequest) (last map[string]*ringmodv1.ScrubResponse, findings []string, err error) {
	stream, err := c.operator(via).Scrub(c.t.Context(), req)
	if err != nil {
		return nil, nil, err
	}
	last = map[string]*ringmodv1.ScrubResponse{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, findings, nil
		}
		if err != nil {
			return last, findings, err
		}
		if last[r.GetNodeId()].GetDone() {
			c.t.Errorf("%s goes on after its end", r.GetNodeId())
		}
		last[r.GetNodeId()] = r
		for _, f := range r.GetFindings() {
			if strings.Contains(f.GetText(), "\n") {
				c.t.Errorf("finding of two lines: %q", f.GetText())
			}
			findings = append(findings, f.GetTarget())
		}
	}
}

func TestScrubAllNodes(t *testing.T) {
	t.Parallel()
	c := newScrubbed(t)
	last, findings, err := c.scrub("n2", &ringmodv1.ScrubRequest{BytesPerSecond: 5, All: true})
	if err != nil || len(last) != 3 || len(findings) != 3 {
		t.Fatalf("%v, %q, %v, want three nodes with a finding each", last, findings, err)
	}
	for id, r := range last {
		if !r.GetDone() || r.GetError() != nil || r.GetObjectsChecked() != 1 || r.GetBytesTotal() != 10 {
			t.Errorf("%s: %v", id, r)
		}
		if s := c.scrubbers[id]; s.rate != 5 || !s.all || s.called != 1 {
			t.Errorf("%s was asked for rate %d, all %v, %d times", id, s.rate, s.all, s.called)
		}
	}
}

func TestScrubSomeOfWhichOneCannot(t *testing.T) {
	t.Parallel()
	c := newScrubbed(t)
	c.scrubbers["n1"].err = scrub.ErrBusy
	last, findings, err := c.scrub("n2", &ringmodv1.ScrubRequest{NodeIds: []string{"n3", "n1", "n3"}})
	if err != nil || len(last) != 2 || len(findings) != 1 {
		t.Fatalf("%v, %q, %v, want two nodes and a finding", last, findings, err)
	}
	if r := last["n1"]; !r.GetDone() || r.GetError().GetText() != scrub.ErrBusy.Error() {
		t.Errorf("n1: %v, want that it is busy", r)
	}
}

func TestScrubRefuses(t *testing.T) {
	t.Parallel()
	c := newScrubbed(t)
	for _, req := range []*ringmodv1.ScrubRequest{
		{NodeIds: []string{"n9"}},
		{NodeIds: []string{"n1", "g1"}},
		{Local: true},
		{Local: true, NodeIds: []string{"n2"}},
		{Local: true, NodeIds: []string{"n1", "n2"}},
	} {
		if _, _, err := c.scrub("n1", req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	for id, s := range c.scrubbers {
		if s.called > 0 {
			t.Errorf("%s scrubs", id)
		}
	}
}

// TestScrubEndsWithItsCaller leaves while two nodes are at it.
func TestScrubEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	c := newScrubbed(t)
	for _, id := range []string{"n1", "n2"} {
		c.scrubbers[id].begun, c.scrubbers[id].ended = make(chan struct{}), make(chan struct{})
	}
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	if _, err := c.operator("n1").Scrub(ctx, &ringmodv1.ScrubRequest{}); err != nil {
		t.Fatal(err)
	}
	<-c.scrubbers["n1"].begun
	<-c.scrubbers["n2"].begun
	leave()
	<-c.scrubbers["n1"].ended
	<-c.scrubbers["n2"].ended
}

// TestScrubEndsWithTheMember stops the asked one.
func TestScrubEndsWithTheMember(t *testing.T) {
	t.Parallel()
	c := newScrubbed(t)
	ending := make(chan struct{})
	s := &scrubber{begun: make(chan struct{}), ended: make(chan struct{})}
	cfg := c.config("n1")
	cfg.Scrubber, cfg.Ending = s, ending
	c.reserve("n1", cfg)
	go func() {
		<-s.begun
		close(ending)
	}()
	_, _, err := c.scrub("n1", &ringmodv1.ScrubRequest{NodeIds: []string{"n1"}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want that the member stops", err)
	}
}
