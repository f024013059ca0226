package member

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	firstWord    = 10 * time.Second // from the dial to the first message
	silence      = 25 * time.Second // afterwards, two signs of life are missing
	followPause  = 500 * time.Millisecond
	followPauses = 5 * time.Second // the longest, while nobody answers
)

var errSilent = errors.New("no sign of life")

// try is what is known of an address.
type try struct {
	last time.Time
	err  string // of the last attempt, said once
}

// lead is whom to follow.
type lead struct {
	addr string
	id   string    // empty: not known
	role ring.Role // 0: not known
	down bool      // by what the last one said
}

// Run follows one member after the other until ctx is done.
func (f *Follower) Run(ctx context.Context) error {
	running, cancel := context.WithCancel(ctx)
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel()
	loops.Go(func() { f.views.run(running) })
	for rounds := 0; ctx.Err() == nil; rounds++ {
		if f.round(ctx) {
			rounds = 0
		}
		pause := min(followPause<<min(rounds, 10), followPauses)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
	return nil
}

// round tries one after the other, until it has followed one for a while.
func (f *Follower) round(ctx context.Context) bool {
	for _, l := range f.leads(ctx) {
		if ctx.Err() != nil {
			return false
		}
		t := f.tries[l.addr]
		t.last = time.Now()
		f.attempts.Add(1)
		followed, err := f.follow(ctx, l)
		if ctx.Err() != nil {
			return followed
		}
		if followed {
			t.err = ""
			f.log.WarnContext(ctx, "lost the member that was followed", "addr", l.addr, "err", err)
			return true
		}
		f.failures.Add(1)
		if text := err.Error(); text != t.err {
			t.err = text
			f.log.WarnContext(ctx, "member cannot be followed, trying on", "addr", l.addr, "err", err)
		}
	}
	return false
}

// leads returns whom to try: those last that are down, and those first whose last try
// is the longest ago.
func (f *Follower) leads(ctx context.Context) []lead {
	var all []lead
	for _, a := range f.seeds.resolve(ctx) {
		all = append(all, lead{addr: a.String()})
	}
	all = append(all, f.learnt()...)
	tries := make(map[string]*try, len(all))
	all = slices.DeleteFunc(all, func(l lead) bool {
		if tries[l.addr] != nil {
			return true
		}
		tries[l.addr] = cmp.Or(f.tries[l.addr], &try{})
		return false
	})
	f.tries = tries
	slices.SortStableFunc(all, func(a, b lead) int {
		switch {
		case a.down == b.down:
			return tries[a.addr].last.Compare(tries[b.addr].last)
		case b.down:
			return -1
		}
		return 1
	})
	return all
}

// learnt returns the nodes that are in, in any order.
func (f *Follower) learnt() []lead {
	var all []lead
	for _, s := range f.Members() {
		if e := s.Entry; e.Role == ring.Node && !e.State.IsTombstone() {
			all = append(all, lead{e.Addr, e.ID, e.Role, !s.Up})
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// follow listens to one member until it falls silent, and tells whether it has said
// anything of use.
func (f *Follower) follow(ctx context.Context, l lead) (followed bool, err error) {
	conn, err := f.dial(l)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }() // it says only that it was closed already
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(firstWord, func() { cancel(errSilent) })
	defer watchdog.Stop()
	err = f.listen(ctx, conn, watchdog, func() {
		if !followed {
			followed = true
			f.log.InfoContext(ctx, "following a member", "addr", l.addr)
			f.begun(ctx)
		}
	})
	if errors.Is(context.Cause(ctx), errSilent) {
		err = errSilent
	}
	return followed, err
}

// begun publishes the first view before it says that there is one.
func (f *Follower) begun(ctx context.Context) {
	select {
	case <-f.joined.ch:
	default:
		f.views.replace(ctx)
		f.joined.set()
	}
}

// listen takes in what a member tells, and calls heard each time.
func (f *Follower) listen(ctx context.Context, conn *grpc.ClientConn, watchdog *time.Timer, heard func()) error {
	stream, err := ringmodv1.NewClusterServiceClient(conn).WatchView(ctx, &ringmodv1.WatchViewRequest{Caller: f.cfg.Self})
	if err != nil {
		return wire.FromStatus(err, "")
	}
	t := telling{began: time.Now()}
	for {
		msg, err := stream.Recv()
		if err != nil {
			return wire.FromStatus(err, "")
		}
		watchdog.Reset(silence)
		if err := f.take(&t, msg); err != nil {
			return err
		}
		f.cfg.OnPrivate(msg.GetPrivate()) // before what waits for OnTombstones goes on
		f.cfg.OnTombstones(ctx, msg.GetTombstones())
		if _, err := f.cfg.Refreshes.Take(refresh.Decode(msg.GetRefreshes())...); err != nil {
			f.log.WarnContext(ctx, "an order to refresh is left out", "addr", conn.Target(), "err", err)
		}
		heard()
	}
}

// dial prepares a connection.
func (f *Follower) dial(l lead) (*grpc.ClientConn, error) {
	options := wire.DialOptions(&wire.Pool{}, wire.Near)
	creds := insecure.NewCredentials()
	if f.cfg.Credentials != nil {
		creds = f.cfg.Credentials(l.id, l.role)
	}
	options = append(options, grpc.WithTransportCredentials(creds))
	if f.cfg.Dial != nil {
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return f.cfg.Dial(ctx, addr)
		}))
	}
	return grpc.NewClient("passthrough:///"+l.addr, options...)
}
