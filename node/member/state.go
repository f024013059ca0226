package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/ringmod/ringmod/ring"
)

const (
	epochReserve = 1024 // epochs per write to disk
	maxSaved     = 64   // addresses
)

// Saved is what a process keeps of the cluster across restarts.
type Saved struct {
	Epoch uint64     `json:"epoch"`          // not below any that this process has written
	State ring.State `json:"state,omitzero"` // of the own entry; 0: not known
	Seeds []string   `json:"seeds"`          // ip:port of the members known last
}

// State keeps a Saved. Methods are called one at a time.
type State interface {
	// Load returns what was saved last; the zero value if nothing ever was.
	Load() (Saved, error)
	// Save replaces it, durably.
	Save(s Saved) error
}

// FileState keeps a Saved as JSON in the file of this name.
type FileState string

// Load reads the file; absence is the zero value.
func (f FileState) Load() (Saved, error) {
	var s Saved
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return Saved{}, fmt.Errorf("reading %s: %w", string(f), err)
	}
	return s, nil
}

// Save writes a new file and renames it over the old one.
func (f FileState) Save(s Saved) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(string(f)), filepath.Base(string(f))+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(append(b, '\n'))
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), string(f))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// keeper saves before it is needed. It belongs to whoever holds
// Membership.writing.
type keeper struct {
	state State // nil keeps nothing
	log   *slog.Logger
	saved Saved
}

// load returns the last life's state. A damaged one costs little: the others know
// the epochs.
func (k *keeper) load(ctx context.Context) Saved {
	if k.state == nil {
		return Saved{}
	}
	s, err := k.state.Load()
	if err != nil {
		k.log.WarnContext(ctx, "cannot read the state of membership, starting without", "err", err)
		return Saved{}
	}
	k.saved = s
	return s
}

// reserve makes sure that a restart begins above the epoch of own, and goes on in its
// state.
func (k *keeper) reserve(ctx context.Context, own ring.Member) {
	if k.state == nil || own.Epoch <= k.saved.Epoch && own.State == k.saved.State {
		return
	}
	epoch := k.saved.Epoch
	if own.Epoch > epoch {
		epoch = own.Epoch + epochReserve
	}
	k.save(ctx, Saved{epoch, own.State, k.saved.Seeds})
}

// remember saves where members are. Nobody alive is no news.
func (k *keeper) remember(ctx context.Context, living []netip.AddrPort) {
	seeds := make([]string, 0, len(living))
	for _, a := range living[:min(len(living), maxSaved)] {
		seeds = append(seeds, a.String())
	}
	if k.state == nil || len(seeds) == 0 || slices.Equal(seeds, k.saved.Seeds) {
		return
	}
	k.save(ctx, Saved{k.saved.Epoch, k.saved.State, seeds})
}

func (k *keeper) save(ctx context.Context, s Saved) {
	if err := k.state.Save(s); err != nil {
		k.log.ErrorContext(ctx, "cannot save the state of membership", "err", err)
		return
	}
	k.saved = s
}
