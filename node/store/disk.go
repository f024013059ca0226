package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	bolterrors "go.etcd.io/bbolt/errors"
)

// format is the number of the layout below the data directory. Raise it when
// an older ringmod would harm what is there.
const format = 1

// DiskConfig says where a Disk is and how it judges files.
type DiskConfig struct {
	// Dir is the data directory; made when missing. Required.
	Dir string
	// Inspect checks the content of a file that has no index entry (index lost,
	// file restored by hand) and returns what is known of it then. An error
	// means that the content is wrong: the file is set aside. It may move f's
	// offset and must not close it. nil accepts nothing.
	Inspect func(name string, f *os.File) (Proof, error)
	// Limit is how much the folder may take; none where it is zero.
	Limit Limit
	// Purged tells which objects and documents must not be here; nil: there are none.
	// They are absent, whatever is on the disk, and are not stored (ErrPurged). It is
	// asked very often, also with locks held, and must not use the Disk.
	Purged func(name string) bool
	// Class says what an object of a module version is worth when room is needed; nil:
	// all are Public.
	Class func(name string) Class
	// Place tells where objects belong, for Sums and Keys; nil: nowhere. It must always
	// say the same of a name.
	Place Place
	// Fault is asked before each step of writing, and before a read ("check", "pulse"):
	// what it returns is as if the operating system had. For simulations; nil: none.
	Fault func(step string) error
	// Logger takes what an operator should know; nil means nobody.
	Logger *slog.Logger
}

// Disk keeps objects as plain files and everything else in one bbolt file:
//
//	<dir>/objects/<name>  the objects, in the layout of the go command's download cache:
//	                      GOPROXY=file://<dir>/objects works, lists included
//	<dir>/index.db        entries of the objects, their number and bytes, their keys by
//	                      partition, when their versions were used and they were checked, what
//	                      was lost, and the documents
//	<dir>/quarantine/     bad copies, at most 1 GiB, a 20th of the limit or 1000 files, the
//	                      oldest go first
//	<dir>/tmp/            objects being written, emptied at start
//	<dir>/hot/            the HotArea, emptied at start
//	<dir>/format          number of this layout
//	<dir>/lock            locked by the process that uses the directory
//
// The files are what counts. An index that is missing or damaged is replaced by an
// empty one, and the objects come back into it as they are asked for or
// found by a walk in the background, after DiskConfig.Inspect has passed them. Documents
// that were in it are gone.
//
// What is made outside ringmod below objects is left alone until its name is asked
// for or the index is rebuilt. Empty folders stay, and count for nothing.
//
// # Size
//
// What is about to be written is reserved within DiskConfig.Limit; what has no room
// is an ErrFull. Above 90 % of the limit module versions are evicted, all objects of one
// together, until 85 % are left: by class, and in a class those that were used least, a
// use counting half for each day that it lies back. Uses are kept in memory and written
// once a minute. What is being written is never evicted; who has a file open keeps it.
//
// A disk that is full or failing takes nothing more (ErrReadOnly) but goes on serving. One
// that cannot be read is asked for nothing until it can (ErrDead).
type Disk struct {
	dir        string
	inspect    func(name string, f *os.File) (Proof, error)
	purged     func(name string) bool
	logger     *slog.Logger
	lock       *os.File
	index      *index
	dirs       dirs
	verified   *verified
	kept       *kept
	buffers    buffers
	quarantine quarantine
	hot        *HotArea
	temps      atomic.Uint64                           // number of temporary files made
	stopAt     atomic.Pointer[func(step string) error] // tests stop a commit here, and count checks

	class     func(name string) Class
	place     Place
	budget    *budget
	uses      uses
	health    health
	unindexed atomic.Int64 // bytes of objects that a lost index does not know yet
	evicted   [classes]evictedCount
	gone      evictedNames

	names keyLock // by name: held while its file and entry may disagree

	rebuild chan struct{} // asks for a walk
	crowded chan struct{} // asks for eviction
	flush   chan struct{} // asks for the uses to be written

	lossNews chan struct{} // says that a copy was bad

	doubts    doubts
	recovered chan struct{} // says that the disk takes things again

	cancel  context.CancelFunc
	running sync.WaitGroup // the walk, evictions, probes, doubts
	closing sync.Once
}

// OpenDisk opens the data directory, or makes it. Its errors are made for the
// terminal: the directory cannot be written, is used by another process or was
// written by a newer ringmod.
func OpenDisk(cfg DiskConfig) (*Disk, error) {
	d := &Disk{
		dir: cfg.Dir, inspect: cfg.Inspect, purged: cfg.Purged, logger: cfg.Logger, class: cfg.Class, place: cfg.Place,
		verified: newVerified(), kept: newKept(), health: health{changed: make(chan struct{})},
		rebuild: make(chan struct{}, 1), crowded: make(chan struct{}, 1), flush: make(chan struct{}, 1),
		lossNews: make(chan struct{}, 1), recovered: make(chan struct{}, 1),
	}
	d.hot = newHotArea(d)
	d.budget = newBudget(cfg.Limit, d.held, d.space, func() { ask(d.crowded) })
	d.uses.flush = func() { ask(d.flush) }
	if cfg.Fault != nil {
		d.stopAt.Store(&cfg.Fault)
	}
	if d.class == nil {
		d.class = func(string) Class { return Public }
	}
	if d.purged == nil {
		d.purged = func(string) bool { return false }
	}
	if d.logger == nil {
		d.logger = slog.New(slog.DiscardHandler)
	}
	d.dirs.root = filepath.Join(d.dir, "objects")
	d.quarantine.dir = filepath.Join(d.dir, "quarantine")
	if err := d.open(); err != nil {
		if d.lock != nil {
			d.lock.Close() //nolint:errcheck // nothing was written to it
		}
		return nil, fmt.Errorf("opening data directory %s: %w", d.dir, explain(err))
	}
	if d.budget.capacity() <= 0 {
		_ = d.trouble(d.crowdedOut())
	} else if trouble := d.Trouble(); trouble != "" {
		d.logger.Warn("little room for the cache", "err", trouble)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	d.running.Go(func() { d.rebuilds(ctx) })
	d.running.Go(func() { d.evictions(ctx) })
	d.running.Go(func() { d.probes(ctx) })
	d.running.Go(func() { d.settles(ctx) })
	return d, nil
}

// ask makes a request that who receives it has not seen yet. It never blocks.
func ask(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // asked for already
	}
}

// Close stops the work in the background, waits for writes to the index and lets the directory go.
// Files that were handed out stay open; commits under way fail with fs.ErrClosed.
func (d *Disk) Close() error {
	var err error
	d.closing.Do(func() {
		d.cancel()
		d.running.Wait()
		err = errors.Join(d.index.close(), unlockFile(d.lock), d.lock.Close())
	})
	return err
}

func (d *Disk) open() error {
	if err := os.MkdirAll(d.dir, 0o777); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := d.checkFormat(); err != nil {
		return err
	}
	for _, name := range []string{"objects", "tmp", "quarantine"} {
		if err := os.MkdirAll(filepath.Join(d.dir, name), 0o777); err != nil {
			return err
		}
	}
	if err := errors.Join(d.sweep(), d.hot.open()); err != nil {
		return err
	}
	d.quarantine.most = maxQuarantineBytes
	if d.budget.limit != (Limit{}) {
		d.quarantine.most = min(maxQuarantineBytes, max(0, d.budget.share()/20))
	}
	if err := d.quarantine.trim(); err != nil {
		return err
	}
	var err error
	d.index, err = openIndex(filepath.Join(d.dir, "index.db"), d.place, d.logger, func() { ask(d.rebuild) })
	if err != nil {
		return err
	}
	if !d.complete() {
		ask(d.rebuild)
	}
	return syncDir(d.dir)
}

var (
	errInUse       = errors.New("in use by another process")
	errNotWritable = errors.New("not writable")
	errNoDir       = errors.New("not a directory")
)

// explain puts the usual reasons in words and keeps the cause.
func explain(err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return errInUse
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %w", errNoDir, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", errNotWritable, err)
	default:
		return err
	}
}

func (d *Disk) takeLock() error {
	f, err := os.OpenFile(filepath.Join(d.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return err
	}
	d.lock = f
	ok, err := lockFile(f)
	if err != nil {
		return fmt.Errorf("locking: %w", err)
	}
	if !ok {
		return errInUse
	}
	return nil
}

func (d *Disk) checkFormat() error {
	path := filepath.Join(d.dir, "format")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ReplaceFile(path, fmt.Appendln(nil, format))
	}
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	switch {
	case err != nil || n < 1:
		return fmt.Errorf("its file named format holds %.20q and not a number; write %d into it if this is ringmod's", b, format)
	case n > format:
		return fmt.Errorf("written by a newer version (format %d, this one knows %d); upgrade or choose another directory", n, format)
	default:
		return nil
	}
}

// ReplaceFile makes data the content of the file at path, durably: after a crash it has
// this content or the one before.
func ReplaceFile(path string, data []byte) error {
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// sweep removes what an earlier process was writing.
func (d *Disk) sweep() error {
	entries, err := os.ReadDir(filepath.Join(d.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(d.dir, "tmp", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// step is called before each thing that can fail.
func (d *Disk) step(name string) error {
	if stop := d.stopAt.Load(); stop != nil {
		return (*stop)(name)
	}
	return nil
}

// createTemp makes a file in tmp. Its mode lets others read the object later.
func (d *Disk) createTemp() (*os.File, error) {
	if err := d.step("create"); err != nil {
		return nil, err
	}
	path := filepath.Join(d.dir, "tmp", strconv.FormatUint(d.temps.Add(1), 10))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	// Somebody has emptied the data directory to be rid of the cache.
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
}

// path returns the file of an object.
func (d *Disk) path(op, name string) (string, error) {
	if err := checkName(op, name); err != nil {
		return "", err
	}
	local, err := filepath.Localize(name)
	if err != nil || !filepath.IsLocal(local) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return filepath.Join(d.dirs.root, local), nil
}
