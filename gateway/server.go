package gateway

import (
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server returns a server for g with the limits of a listener that anybody may
// reach: 10 s for a request's header of at most 32 KiB, 2 minutes between
// requests. There is no limit on the time an answer takes: g moves the write
// deadline ahead of the bytes. The logger takes what net/http complains about;
// nil: nobody does.
func Server(g http.Handler, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:                      g,
		ReadHeaderTimeout:            10 * time.Second,
		IdleTimeout:                  2 * time.Minute,
		MaxHeaderBytes:               32 << 10,
		ErrorLog:                     slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
	}
}

// Admin returns the handler of the listener for operators: /metrics from
// metrics, /debug/pprof/, /healthz, and /readyz, which answers with what ready
// says. It must not be reachable by everybody.
func Admin(metrics prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		adminExchange(w, r).readiness(nil)
	})
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		adminExchange(w, r).readiness(ready())
	})
	return mux
}

// adminExchange leaves the connection without a write deadline: the next
// request on it may be for a profile, which takes long and moves none.
func adminExchange(w http.ResponseWriter, r *http.Request) *exchange {
	now := time.Now()
	return &exchange{ResponseWriter: w, r: r, start: now, deadline: now.Add(24 * time.Hour)}
}
