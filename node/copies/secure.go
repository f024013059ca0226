package copies

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// How long Secure waits for one replica.
const (
	secureLimit = 5 * time.Second  // and for its bytes
	secureRate  = 20 << 20         // of bytes per second, at least
	unanswered  = 10 * time.Second // for which a member is left out that has not answered
)

// ErrAlone says that there is nobody to ask for a second copy.
var ErrAlone = errors.New("no other node can be reached")

var (
	errNotTaken = errors.New("the node has not taken it")
	errMute     = errors.New("the node does not answer")
)

// Secure returns nil when another node has t durably, which is stored here: another
// replica, or where none takes it a spare rank, which hands it over in time. It gives
// all of them 5 s, and what the bytes take at 20 MiB/s; who has not answered is left out
// for 10 s. ErrAlone: there is nobody. What is not secured waits, as everything that is
// stored here, until all replicas have it.
func (k *Keeper) Secure(ctx context.Context, t target.Target) error {
	err := k.secure(ctx, t)
	k.metrics.secured(err)
	return err
}

func (k *Keeper) secure(ctx context.Context, t target.Target) error {
	ids := k.present(t)
	if len(ids) == 0 {
		return ErrAlone // before anything is read
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
	for tried := ids; len(ids) > 0; tried = append(tried, ids...) {
		if err = k.secureAtAny(ctx, ids, h.GetCopy()); err == nil || ctx.Err() != nil {
			break
		}
		ids = k.present(t, tried...)
	}
	return err
}

// secureAtAny returns nil when one of those nodes has a copy.
func (k *Keeper) secureAtAny(ctx context.Context, ids []string, c *ringmodv1.Copy) error {
	answers := make(chan error, len(ids))
	for _, id := range ids {
		go func() { answers <- k.secureAt(ctx, id, c) }()
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

// present returns the other replicas of t that can be asked, else a spare rank, but for
// those that were.
func (k *Keeper) present(t target.Target, but ...string) []string {
	view := k.cfg.View()
	if view == nil {
		return nil
	}
	var ids []string
	replicas := view.Next().ReplicaCount(k.cfg.Region)
	for rank, i := range view.Next().Ranks(k.cfg.Region, ring.OfTarget(t)) {
		id := view.Member(i).ID
		if rank >= replicas && len(ids) > 0 {
			break
		}
		if id != k.cfg.Self && !slices.Contains(but, id) && k.reachable(id) && !k.mute.has(id) {
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
	if !k.cfg.Nodes.Answers(ctx, id) { // who is not there must not cost what the bytes may
		k.mute.add(id)
		return errMute
	}
	req := &ringmodv1.AnnounceRequest{Holder: k.cfg.Self, Copies: []*ringmodv1.Copy{c}, Wait: true}
	req.ViewDigest, req.ViewSeq = k.stamp()
	resp, err := ringmodv1.NewPeerServiceClient(conn).Announce(ctx, req)
	switch {
	case status.Code(err) == codes.Unavailable && ctx.Err() == nil:
		k.mute.add(id)
		return errMute
	case err != nil:
		return err
	case len(resp.GetOutcomes()) != 1 || resp.GetOutcomes()[0] != ringmodv1.Outcome_OUTCOME_HELD:
		return errNotTaken
	default:
		return nil
	}
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
