package copies_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func replicas(t testing.TB, view *ring.View, name string) []string {
	t.Helper()
	var ids []string
	for _, i := range view.Next().Replicas("a", ring.OfTarget(parse(t, name))) {
		ids = append(ids, view.Member(i).ID)
	}
	return ids
}

// What is announced is pulled, and not announced again.
func TestPull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
		req := &ringmodv1.AnnounceRequest{Holder: "a2"}
		for i := range 50 {
			name, data := modName(i), fmt.Sprint("mod ", i)
			r.others.held[name] = []byte(data)
			req.Copies = append(req.Copies, copyOf(name, data))
		}
		resp, err := r.announce(t.Context(), req)
		if err != nil || slices.ContainsFunc(resp.GetOutcomes(), func(o ringmodv1.Outcome) bool { return o != wanted }) {
			t.Fatalf("%v, %v, want all wanted", resp, err)
		}
		synctest.Wait()
		resp, err = r.announce(t.Context(), req)
		if err != nil || slices.ContainsFunc(resp.GetOutcomes(), func(o ringmodv1.Outcome) bool { return o != held }) {
			t.Fatalf("%v, %v, want all held", resp, err)
		}
		time.Sleep(time.Minute)
		if asked, most := r.others.pulls(); asked != 50 || most > 4 {
			t.Errorf("%d pulls, want 50, of which %d at once, want 4 at most", asked, most)
		}
		if got := r.others.names(); len(got) > 0 {
			t.Errorf("what was pulled was announced: %v", got)
		}
		if resp.GetViewDigest() != r.view.Digest() || resp.GetViewSeq() != r.view.Seq() {
			t.Errorf("view %d %d", resp.GetViewDigest(), resp.GetViewSeq())
		}
	})
}

// How announcements are judged.
func TestConsidered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		view := viewOf(t, "a1", "a2", "a3", "a4", "b1")
		r := newRig(t, view, copies.Config{})
		ours, theirs := "", ""
		for i := 0; ours == "" || theirs == ""; i++ {
			if slices.Contains(replicas(t, view, modName(i)), "a1") {
				ours = modName(i)
			} else {
				theirs = modName(i)
			}
		}
		lookup := "sumdb/sum.example.com/lookup/example.com/m@v1.0.0"
		for i := 1; !slices.Contains(replicas(t, view, lookup), "a1"); i++ {
			lookup = fmt.Sprintf("sumdb/sum.example.com/lookup/example.com/m@v1.0.%d", i)
		}
		bad := func(change func(c *ringmodv1.Copy)) *ringmodv1.Copy {
			c := copyOf(ours, "x")
			change(c)
			return c
		}
		for _, name := range []string{ours, lookup} {
			if err := put(r.node.mem, name, "x"); err != nil {
				t.Fatal(err)
			}
		}
		for _, test := range []struct {
			name   string
			holder string
			copy   *ringmodv1.Copy
			want   ringmodv1.Outcome
		}{
			{"held", "a2", copyOf(ours, "x"), held},
			{"other bytes", "a2", copyOf(ours, "y"), conflict},
			{"other head of a lookup", "a2", copyOf(lookup, "y"), held},
			{"not ours", "a2", copyOf(theirs, "x"), declined},
			{"unknown holder", "a9", copyOf(ours, "y"), declined},
			{"holder far away", "b1", copyOf(ours, "y"), declined},
			{"nothing", "a2", &ringmodv1.Copy{}, declined},
			{"no digest", "a2", bad(func(c *ringmodv1.Copy) { c.Sha256 = nil }), declined},
			{"too large", "a2", bad(func(c *ringmodv1.Copy) { c.Size = 1 << 40 }), declined},
			{"way out", "a2", bad(func(c *ringmodv1.Copy) { c.Target = "../../etc/passwd" }), declined},
			{"tree head", "a2", bad(func(c *ringmodv1.Copy) { c.Target = "sumdb/sum.example.com/latest" }), declined},
		} {
			resp, err := r.announce(t.Context(), &ringmodv1.AnnounceRequest{Holder: test.holder, Copies: []*ringmodv1.Copy{test.copy}})
			if err != nil || resp.GetOutcomes()[0] != test.want {
				t.Errorf("%s: %v, %v, want %v", test.name, resp, err, test.want)
			}
		}
		for _, req := range []*ringmodv1.AnnounceRequest{
			{Holder: "a2"},
			{Holder: "a1", Copies: []*ringmodv1.Copy{copyOf(ours, "x")}},
			{Holder: "", Copies: []*ringmodv1.Copy{copyOf(ours, "x")}},
			{Holder: "a2", Copies: make([]*ringmodv1.Copy, 1025)},
		} {
			if resp, err := r.announce(t.Context(), req); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%d copies of %q: %v, %v", len(req.GetCopies()), req.GetHolder(), resp, err)
			}
		}
		if entry, err := r.node.mem.Stat(ours); err != nil || entry.Size != 1 || r.asked() != 0 {
			t.Errorf("%+v, %v, %d pulls", entry, err, r.asked())
		}
	})
}

// What the node does not want is declined, unless it is held anyway, and of what differs
// somebody hears.
func TestDeclines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unwanted, other := modName(1), modName(2)
		var conflicts []string
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{
			Declines: func(t target.Target, _ *ringmodv1.Copy) bool { return t.String() == unwanted },
			OnConflict: func(t target.Target, holder string, _ *ringmodv1.Copy) {
				conflicts = append(conflicts, t.String()+" "+holder)
			},
		})
		ask := func(name, data string, want ringmodv1.Outcome) {
			t.Helper()
			resp, err := r.announce(t.Context(), &ringmodv1.AnnounceRequest{Holder: "a2", Copies: []*ringmodv1.Copy{copyOf(name, data)}})
			if err != nil || resp.GetOutcomes()[0] != want {
				t.Errorf("%s: %v, %v, want %v", name, resp, err, want)
			}
		}
		ask(unwanted, "x", declined)
		for _, name := range []string{unwanted, other} {
			if err := put(r.node.mem, name, "x"); err != nil {
				t.Fatal(err)
			}
		}
		ask(unwanted, "x", held)
		ask(other, "y", conflict)
		if want := []string{other + " a2"}; !slices.Equal(conflicts, want) || r.asked() != 0 {
			t.Errorf("conflicts %q, want %q, and %d pulls", conflicts, want, r.asked())
		}
	})
}

// Pull shares the limits of announced pulls, and does not get what is here.
func TestPullForOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		var all sync.WaitGroup
		for i := range 20 {
			name, data := modName(i), fmt.Sprint("mod ", i)
			r.others.set(func() { r.others.held[name] = []byte(data) })
			all.Go(func() {
				if pulled, err := r.Pull(t.Context(), parse(t, name), sha256.Sum256([]byte(data)), "a2"); !pulled || err != nil {
					t.Errorf("%s: %v, %v", name, pulled, err)
				}
			})
		}
		all.Wait()
		if asked, most := r.others.pulls(); asked != 20 || most > 4 {
			t.Errorf("%d pulls, %d at once", asked, most)
		}
		if pulled, err := r.Pull(t.Context(), parse(t, modName(1)), [32]byte{}, "a2"); pulled || err != nil {
			t.Errorf("of what is here: %v, %v", pulled, err)
		}
		if pulled, err := r.Pull(t.Context(), parse(t, modName(99)), [32]byte{}, "a2"); pulled || err == nil {
			t.Errorf("of what nobody has: %v, %v", pulled, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r.end()
		cancel()
		if pulled, err := r.Pull(ctx, parse(t, modName(98)), [32]byte{}, "a2"); pulled || !errors.Is(err, context.Canceled) {
			t.Errorf("in the end: %v, %v", pulled, err)
		}
	})
}

// A younger list is pulled, an older one is not.
func TestPullOfDocuments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const list = "example.com/m/@v/list"
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		if err := r.node.mem.PutDocument(list, store.Document{Fetched: time.Now()}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for age, want := range map[time.Duration]ringmodv1.Outcome{time.Second: wanted, time.Hour: held} {
			c := copyOf(list, "v1.0.0\n")
			c.Age = durationpb.New(age)
			resp, err := r.announce(t.Context(), &ringmodv1.AnnounceRequest{Holder: "a2", Copies: []*ringmodv1.Copy{c}})
			if err != nil || resp.GetOutcomes()[0] != want {
				t.Errorf("of %v: %v, %v, want %v", age, resp, err, want)
			}
		}
	})
}

// A caller who waits is told what has come in the end.
func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		data := string(make([]byte, 5000))
		r.others.takes = 5 * time.Second
		r.others.held[modName(1)] = []byte(data)
		req := &ringmodv1.AnnounceRequest{Holder: "a2", Wait: true, Copies: []*ringmodv1.Copy{
			copyOf(modName(1), data), copyOf(modName(2), "not to be had"),
		}}
		start := time.Now()
		resp, err := r.announce(t.Context(), req)
		if want := []ringmodv1.Outcome{held, wanted}; err != nil || !slices.Equal(resp.GetOutcomes(), want) {
			t.Errorf("%v, %v, want %v", resp, err, want)
		}
		if took := time.Since(start); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("took %v, want about 5 s", took)
		}
		r.others.set(func() { r.others.held[modName(3)] = []byte(data) })
		req.Copies = []*ringmodv1.Copy{copyOf(modName(3), data)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if resp, err := r.announce(ctx, req); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%v, %v, want DeadlineExceeded", resp, err)
		}
	})
}

// Pulls wait while many fills run, but not for ever; those that fail are left to
// the next announcement; other bytes than announced are not taken.
func TestPullsYieldAndFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		r.others.held[modName(1)] = []byte("x")
		r.node.set(40, nil)
		req := &ringmodv1.AnnounceRequest{Holder: "a2", Copies: []*ringmodv1.Copy{copyOf(modName(1), "x")}}
		announce := func(want ringmodv1.Outcome) {
			t.Helper()
			resp, err := r.announce(t.Context(), req)
			if err != nil || resp.GetOutcomes()[0] != want {
				t.Errorf("%v, %v, want %v", resp, err, want)
			}
		}
		announce(wanted)
		time.Sleep(4 * time.Second)
		if r.asked() != 0 {
			t.Error("pulled while many fills run")
		}
		announce(wanted)
		r.node.set(40, errFull)
		time.Sleep(4 * time.Second)
		if r.asked() != 1 {
			t.Errorf("%d pulls, want 1", r.asked())
		}
		r.node.set(0, nil)
		r.others.set(func() { r.others.held[modName(1)] = []byte("y") })
		announce(wanted)
		time.Sleep(time.Second)
		if _, err := r.node.mem.Stat(modName(1)); err == nil {
			t.Error("other bytes than announced were taken")
		}
		r.others.set(func() { r.others.held[modName(1)] = []byte("x") })
		announce(wanted)
		time.Sleep(time.Second)
		announce(held)
	})
}

// No more waits than there is room for.
func TestPullsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2"), copies.Config{})
		r.node.set(100, nil) // nothing moves
		full := false
		for call := 0; call < 20 && !full; call++ {
			req := &ringmodv1.AnnounceRequest{Holder: "a2"}
			for i := range 1024 {
				req.Copies = append(req.Copies, copyOf(modName(call*1024+i), "x"))
			}
			_, err := r.announce(t.Context(), req)
			full = status.Code(err) == codes.ResourceExhausted
			if err != nil && !full {
				t.Fatal(err)
			}
		}
		if !full {
			t.Error("20 × 1024 pulls wait")
		}
		if _, err := r.announce(t.Context(), &ringmodv1.AnnounceRequest{Holder: "a2", Copies: make([]*ringmodv1.Copy, 1024)}); err == nil {
			t.Error("there is room for more")
		}
		r.end()
	})
}

// Whatever comes, it is answered or refused.
func FuzzAnnounce(f *testing.F) {
	for _, req := range []*ringmodv1.AnnounceRequest{
		{Holder: "a2", Copies: []*ringmodv1.Copy{copyOf(modName(1), "x")}, ViewDigest: 1, ViewSeq: 2},
		{Holder: "a2", Copies: []*ringmodv1.Copy{copyOf("sumdb/sum.example.com/tile/8/0/000", "x"), {}, copyOf("example.com/m/@v/list", "x")}},
		{Holder: "..", Copies: []*ringmodv1.Copy{copyOf("../x", "")}},
	} {
		data, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	view := viewOf(f, "a1", "a2", "b1")
	f.Fuzz(func(t *testing.T, data []byte) {
		req := &ringmodv1.AnnounceRequest{}
		if proto.Unmarshal(data, req) != nil {
			return
		}
		req.Wait = false
		r := newRig(t, view, copies.Config{})
		defer r.end()
		resp, err := r.announce(t.Context(), req)
		switch code := status.Code(err); {
		case err == nil && len(resp.GetOutcomes()) != len(req.GetCopies()):
			t.Errorf("%d outcomes for %d copies", len(resp.GetOutcomes()), len(req.GetCopies()))
		case err != nil && code != codes.InvalidArgument && !errors.Is(err, context.Canceled):
			t.Errorf("%v", err)
		}
		for i, o := range resp.GetOutcomes() {
			name := req.GetCopies()[i].GetTarget()
			if o == wanted && !slices.Contains(replicas(t, view, name), "a1") {
				t.Errorf("wants %s, which is not its own", name)
			}
		}
	})
}

// A panic over what a holder sends ends that pull and nothing else.
func TestPullsOutliveABadAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, viewOf(t, "a1", "a2", "b1"), copies.Config{})
		r.others.held[modName(0)] = []byte("mod 0")
		req := &ringmodv1.AnnounceRequest{Holder: "a2", Copies: []*ringmodv1.Copy{copyOf(modName(0), "mod 0")}}
		r.others.panics = true
		for range 10 { // more than there are who pull
			if _, err := r.announce(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		r.others.panics = false
		if _, err := r.announce(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if resp, err := r.announce(t.Context(), req); err != nil || resp.GetOutcomes()[0] != held {
			t.Errorf("%v, %v, want it held", resp, err)
		}
	})
}
