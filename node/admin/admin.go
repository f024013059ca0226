// Package admin answers AdminService: what operators ask of the cluster, through
// any of its members.
//
// Status and Explain describe the cluster as the answering member sees it: who is
// in and what owns what comes from its view, who is up from its own experience.
// What only others know (how full they are, what they hold) it asks of all members
// that are in, those that seem down included, all at once and for at most 2
// seconds. Whoever has not answered by then is shown without, so that a cluster in
// trouble is described as fast as a healthy one.
//
// They change nothing, and work on nodes and gateways alike, and on a member that has no
// view yet, of which they tell just that.
//
// Drain and SetState change who is in. Drain is passed on to the node in question,
// which leaves by itself: who looks on may go and come back. Scrub has the named nodes
// check what they hold, each on its own, for as long as its caller looks on; a node that
// cannot says why, and the others go on. Audit does the same with what upstream says of
// these versions, or tells what is known of that. Purge is passed on to Config.Purger. Import has
// this node fetch files from what its caller sends, verified as ever. Refresh gives an
// order (internal/refresh), tells all nodes of it, and has upstream asked for what its
// caller wants to see.
//
// Whatever a caller or another member sends ends that call, or leaves out that
// member, and nothing else. Who may call is for the server's interceptors to say.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/life"
	"github.com/ringmod/ringmod/node/member"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	patience = 2 * time.Second // with all others together (admin.proto)
	maxAsked = 256             // members at once
)

// Membership is the cluster as this member knows it; *member.Membership is one.
type Membership interface {
	// Snapshot returns the member table as it travels.
	Snapshot() *ringmodv1.View
	// View returns the placement; nil while there is none.
	View() *ring.View
	// Members returns what is known of each entry besides.
	Members() []member.Status
	// Forget writes that a member will not come back, see member.Membership.
	Forget(ctx context.Context, id string, force bool) error
}

// Conns leads to the other members; *peers.Set is one.
type Conns interface {
	Conn(id string) (grpc.ClientConnInterface, error)
}

// Reporter tells what this member says of itself; *Local is one.
type Reporter interface {
	Report() *ringmodv1.MemberReport
}

// Holder tells what this node holds; *node.Node is one.
type Holder interface {
	Holding(ctx context.Context, t target.Target) (*ringmodv1.Holding, error)
}

// Leaver takes this node out for good; *life.Life does.
type Leaver interface {
	// Drain begins to, and does not wait.
	Drain(ctx context.Context, streams time.Duration) error
	// Handover tells how far that is; an error says that it will not end.
	Handover() (life.Handover, error)
}

// Config says what AdminService answers from.
type Config struct {
	Self       string // own member id
	Membership Membership
	Conns      Conns           // never asked for Self
	Reporter   Reporter        // nil = nothing to report
	Holder     Holder          // nil = a gateway, which holds nothing
	Leaver     Leaver          // nil = a gateway, which need not hand anything over
	Scrubber   Scrubber        // nil = a gateway
	Auditor    Auditor         // nil = a gateway
	Purger     Purger          // nil = nothing can be purged
	Filler     Filler          // nil = a gateway, into which nothing can be imported
	Refreshes  *Refreshes      // nil = nothing can be refreshed
	Ending     <-chan struct{} // closed when this member stops; nil = never
	Logger     *slog.Logger    // nil = silent
}

// Register offers AdminService on server, and returns it for who is in the same process.
func Register(server grpc.ServiceRegistrar, cfg Config) ringmodv1.AdminServiceServer {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &service{cfg: cfg}
	ringmodv1.RegisterAdminServiceServer(server, s)
	return s
}

// service is AdminService. What it does not have stays unimplemented.
type service struct {
	ringmodv1.UnimplementedAdminServiceServer

	cfg Config
}

// end turns what ended a call into its status.
func (s *service) end(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		s.cfg.Logger.ErrorContext(ctx, "panic in a call", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = &cache.Error{Reason: cache.Internal, Text: "the member failed while answering"}
	}
	*err = wire.Status(*err)
}

// ups tells who can be reached. Whoever answers can reach itself.
func (s *service) ups(members []member.Status) func(id string) bool {
	up := map[string]bool{s.cfg.Self: true}
	for _, m := range members {
		up[m.Entry.ID] = up[m.Entry.ID] || m.Up
	}
	return func(id string) bool { return up[id] }
}

var errOther = errors.New("another member answers there, or not what it was asked")

// askAll asks the members of these ids and returns the answers that came in time.
func askAll[A any](ctx context.Context, s *service, ids []string, ask func(context.Context, grpc.ClientConnInterface, string) (A, error)) map[string]A {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var mu sync.Mutex
	answers := make(map[string]A, len(ids))
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for _, id := range ids {
		group.Go(func() error {
			conn, err := s.cfg.Conns.Conn(id)
			var answer A
			if err == nil {
				answer, err = ask(ctx, conn, id)
			}
			if err != nil {
				s.cfg.Logger.DebugContext(ctx, "member did not answer", "member", id, "err", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			answers[id] = answer
			return nil
		})
	}
	_ = group.Wait()
	return answers
}
