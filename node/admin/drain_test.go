package admin_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/node/life"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// leaver hands over an object a second once it was told to leave.
type leaver struct {
	mu      sync.Mutex
	refuses error
	since   time.Time
	streams time.Duration
	stops   time.Duration // after which its process ends; 0: never
}

const leavesAfter = 3 * time.Second

func (l *leaver) Drain(_ context.Context, streams time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuses == nil && l.since.IsZero() {
		l.since, l.streams = time.Now(), streams
	}
	return l.refuses
}

func (l *leaver) Handover() (life.Handover, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := time.Since(l.since)
	if l.stops > 0 && took >= l.stops {
		return life.Handover{}, life.ErrEnded
	}
	left := int64((leavesAfter - took) / time.Second)
	return life.Handover{Known: true, Objects: max(0, left), Bytes: 10 * max(0, left), Streams: 1, Gone: took >= leavesAfter}, nil
}

// drained is a cluster whose nodes n1 and n2 can leave.
func drained(t *testing.T, edit ...func(*leaver)) (*scrubbed, *leaver) {
	t.Helper()
	c := newScrubbed(t)
	l := &leaver{}
	for _, f := range edit {
		f(l)
	}
	cfg := c.config("n2")
	cfg.Leaver = l
	c.reserve("n2", cfg)
	return c, l
}

// drain returns the objects that were left in each message, and how it ended.
func (c *scrubbed) drain(ctx context.Context, via string, req *ringmodv1.DrainRequest) (left []uint64, last ringmodv1.MemberState, err error) {
	stream, err := c.operator(via).Drain(ctx, req)
	for err == nil {
		var r *ringmodv1.DrainResponse
		if r, err = stream.Recv(); err == nil {
			left, last = append(left, r.GetObjectsLeft()), r.GetState()
			if r.GetBytesLeft() != 10*r.GetObjectsLeft() || r.GetStreamsLeft() != 1 && last != ringmodv1.MemberState_MEMBER_STATE_LEFT {
				c.t.Errorf("got %v", r)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return left, last, err
}

// A node reports each second how far it is, by way of any member.
func TestDrain(t *testing.T) {
	t.Parallel()
	for _, via := range []string{"n2", "n1"} {
		synctest.Test(t, func(t *testing.T) {
			c, l := drained(t)
			left, last, err := c.drain(t.Context(), via, &ringmodv1.DrainRequest{NodeId: "n2", StreamTimeout: durationpb.New(time.Minute)})
			if err != nil || len(left) != 4 || left[0] != 3 || left[3] != 0 || last != ringmodv1.MemberState_MEMBER_STATE_LEFT || l.streams != time.Minute {
				t.Errorf("via %s: %v, %v, %v with %v for streams, want 3 2 1 0, left, a minute", via, left, last, err, l.streams)
			}
		})
	}
}

// A caller that goes stops nothing, and may come back.
func TestDrainGoesOnWithoutItsCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := drained(t)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if left, _, err := c.drain(ctx, "n1", &ringmodv1.DrainRequest{NodeId: "n2"}); status.Code(err) != codes.DeadlineExceeded || len(left) != 2 {
			t.Errorf("%v, %v, want two messages", left, err)
		}
		if left, _, err := c.drain(t.Context(), "n1", &ringmodv1.DrainRequest{NodeId: "n2"}); err != nil || left[0] != 1 {
			t.Errorf("%v, %v, want to find 1 object left", left, err)
		}
	})
}

// What cannot be drained, and why.
func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	state := func(id string, s ring.State) func(*scrubbed) {
		return func(c *scrubbed) {
			for i := range c.entries {
				if c.entries[i].ID == id {
					c.entries[i].State = s
				}
			}
		}
	}
	for _, test := range []struct {
		id   string
		edit func(*scrubbed)
		node func(*leaver)
		code codes.Code
		want string
	}{
		{"n9", nil, nil, codes.NotFound, "no member"},
		{"g1", nil, nil, codes.InvalidArgument, "gateway"},
		{"n2", func(c *scrubbed) { c.down = []string{"n2"} }, nil, codes.FailedPrecondition, "is down"},
		{"n2", state("n2", ring.Forgotten), nil, codes.FailedPrecondition, "forgotten"},
		{"n2", state("n2", ring.Left), nil, codes.OK, ""},
		{"n2", nil, func(l *leaver) { l.refuses = life.ErrLast }, codes.FailedPrecondition, "no other active node"},
		{"n2", nil, func(l *leaver) { l.refuses = errors.New("disk") }, codes.Internal, "disk"},
		{"n2", nil, func(l *leaver) { l.stops = time.Second }, codes.Aborted, "goes on leaving"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := drained(t, func(l *leaver) {
				if test.node != nil {
					test.node(l)
				}
			})
			if test.edit != nil {
				test.edit(c)
			}
			_, _, err := c.drain(t.Context(), "n1", &ringmodv1.DrainRequest{NodeId: test.id})
			if status.Code(err) != test.code || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v, want %v with %q", test.id, err, test.code, test.want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c, l := drained(t)
		for _, wait := range []time.Duration{-time.Second, 2 * time.Hour} {
			_, _, err := c.drain(t.Context(), "n2", &ringmodv1.DrainRequest{NodeId: "n2", StreamTimeout: durationpb.New(wait)})
			if status.Code(err) != codes.InvalidArgument || !l.since.IsZero() {
				t.Errorf("streams for %v: %v, want InvalidArgument", wait, err)
			}
		}
	})
}

func TestSetState(t *testing.T) {
	t.Parallel()
	const forgotten = ringmodv1.MemberState_MEMBER_STATE_FORGOTTEN
	for _, test := range []struct {
		id    string
		state ringmodv1.MemberState
		force bool
		code  codes.Code
		want  string
	}{
		{"n3", forgotten, false, codes.OK, ""},
		{"n2", forgotten, false, codes.FailedPrecondition, "is up"},
		{"n2", forgotten, true, codes.OK, ""},
		{"n9", forgotten, true, codes.NotFound, "no member"},
		{"n3", ringmodv1.MemberState_MEMBER_STATE_LEFT, true, codes.InvalidArgument, "drained"},
		{"n3", 0, false, codes.InvalidArgument, "drained"},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newScrubbed(t)
			c.down = []string{"n3"}
			resp, err := c.operator("n1").SetState(t.Context(), &ringmodv1.SetStateRequest{MemberId: test.id, State: test.state, Force: test.force})
			if status.Code(err) != test.code || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%+v: %v", test, err)
			}
			if m := resp.GetMember(); err == nil && (m.GetId() != test.id || m.GetState() != forgotten) {
				t.Errorf("%+v: got %v", test, m)
			}
		})
	}
}
