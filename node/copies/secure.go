package copies

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// How long Secure waits for one replica.
const (
	secureLimit = 5 * time.Second  // and for its bytes
	secureRate  = 20 << 20         // of bytes per second, at least
	unanswered  = 10 * time.Second // for which a member is left out that has not answered
)

// ErrAlone says that no other replica of an object can be reached.
var ErrAlone = errors.New("no other replica can be reached")

// errNotTaken says that a replica that answers does not hold the object.
var errNotTaken = errors.New("the replica has not taken it")

// Secure returns nil when another replica of t, which is stored here, holds it durably.
// It gives all of them 5 s, and what the bytes take at 20 MiB/s; a replica that has not
// answered is left out for 10 s. ErrAlone: there is none that can be asked. What is not
// secured waits, as everything that is stored here, until all have it.
func (k *Keeper) Secure(ctx context.Context, t target.Target) error {
	err := k.secure(ctx, t)
	k.metrics.secured(err)
	return err
}

func (k *Keeper) secure(ctx context.Context, t target.Target) error {
	ids := k.present(t)
	if len(ids) == 0 {
		return ErrAlone
	}
	h, err := k.node.Holding(ctx, t)
	if err != nil {
		return err
	}
	if h.GetCopy() == nil {
		return fmt.Errorf("%s is not held here", t)
	}
	ctx, cancel := context.WithTimeout(ctx, secureLimit+time.Duration(float64(h.GetCopy().GetSize())/secureRate*float64(time.Second)))
	defer cancel()
	answers := make(chan error, len(ids))
	for _, id := range ids {
		go func() { answers <- k.secureAt(ctx, id, h.GetCopy()) }()
	}
	var all []error
	for range ids {
		err := <-answers
		if err == nil {
			return nil
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// present returns the other replicas of t that can be asked.
func (k *Keeper) present(t target.Target) []string {
	var ids []string
	for _, id := range k.replicas(t) {
		if id != k.cfg.Self && k.reachable(id) && !k.mute.has(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// secureAt asks a member to hold a copy, and waits until it does.
func (k *Keeper) secureAt(ctx context.Context, id string, c *ringmodv1.Copy) (err error) {
	defer k.survive(ctx, id, &err)
	conn, err := k.cfg.Nodes.Conn(id)
	if err != nil {
		return err
	}
	req := &ringmodv1.AnnounceRequest{Holder: k.cfg.Self, Copies: []*ringmodv1.Copy{c}}
	req.ViewDigest, req.ViewSeq = k.stamp()
	client := ringmodv1.NewPeerServiceClient(conn)
	// Who is there says so at once; who is not must not cost what the bytes may.
	first, cancel := context.WithTimeout(ctx, wire.Silence)
	resp, err := client.Announce(first, req)
	cancel()
	if err == nil && wanted(resp) {
		req.Wait = true
		resp, err = client.Announce(ctx, req)
	}
	if code := status.Code(err); ctx.Err() == nil && (code == codes.Unavailable || code == codes.DeadlineExceeded) {
		k.mute.add(id)
	}
	switch {
	case err != nil:
		return err
	case len(resp.GetOutcomes()) != 1 || resp.GetOutcomes()[0] != ringmodv1.Outcome_OUTCOME_HELD:
		return errNotTaken
	default:
		return nil
	}
}

func wanted(resp *ringmodv1.AnnounceResponse) bool {
	return len(resp.GetOutcomes()) == 1 && resp.GetOutcomes()[0] == ringmodv1.Outcome_OUTCOME_WANTED
}

// mute are members that have not answered lately. The zero mute has none.
type mute struct {
	mu    sync.Mutex
	since map[string]time.Time
}

func (m *mute) has(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.since[id]) < unanswered
}

func (m *mute) add(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since == nil {
		m.since = make(map[string]time.Time)
	}
	for old, at := range m.since {
		if time.Since(at) >= unanswered {
			delete(m.since, old)
		}
	}
	m.since[id] = time.Now()
}
