package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/mod/module"

	"github.com/ringmod/ringmod/internal/refresh"
)

const (
	maxPaths   = 8  // of a body
	maxModules = 16 // of the hook's address
)

// eventOf returns what a host says has happened, in lower case; "" where it does not.
func eventOf(h http.Header) string {
	for _, name := range [...]string{"X-GitHub-Event", "X-Gitea-Event", "X-Forgejo-Event", "X-Gogs-Event", "X-Gitlab-Event"} {
		if event := h.Get(name); event != "" {
			return strings.ToLower(event)
		}
	}
	return ""
}

// isPush tells whether tags or branches may have changed.
func isPush(event string) bool {
	switch event {
	case "", "push", "create", "delete", "release", "push hook", "tag push hook", "release hook", "system hook":
		return true
	}
	return false
}

// deliveryOf returns the id of a delivery, "" where it has none.
func deliveryOf(h http.Header) string {
	for _, name := range [...]string{"X-GitHub-Delivery", "X-Gitea-Delivery", "X-Forgejo-Delivery", "X-Gogs-Delivery", standardID, "Idempotency-Key"} {
		if id := h.Get(name); id != "" {
			return name + ":" + id
		}
	}
	return ""
}

// repository is where the bodies of hooks tell of the one that was pushed to.
type repository struct {
	CloneURL   string `json:"clone_url"`
	HTMLURL    string `json:"html_url"`
	SSHURL     string `json:"ssh_url"`
	GitHTTPURL string `json:"git_http_url"`
	GitSSHURL  string `json:"git_ssh_url"`
	WebURL     string `json:"web_url"`
}

var (
	errBody   = errors.New("the body is not the JSON of a push")
	errModule = errors.New("?module= wants the path of a module, or what several begin with")
)

// pathsOf returns what modules in the repository of a push begin with: host and path, also
// in lower case, as modules may be known by that where the host makes no difference, and
// with the ".git" that says where the repository ends.
func pathsOf(contentType string, body []byte) ([]string, error) {
	if kind, _, _ := mime.ParseMediaType(contentType); kind == "application/x-www-form-urlencoded" { // GitHub's other way
		form, _ := url.ParseQuery(string(body))            // what can be read of it
		if payload := form.Get("payload"); payload != "" { // else who tries it out with curl
			body = []byte(payload)
		}
	}
	var push struct{ Repository, Project repository }
	if err := json.Unmarshal(body, &push); err != nil {
		return nil, errBody
	}
	var paths []string
	for _, r := range []repository{push.Repository, push.Project} {
		for _, address := range []string{r.CloneURL, r.GitHTTPURL, r.HTMLURL, r.WebURL, r.SSHURL, r.GitSSHURL} {
			path := pathOf(address)
			if path == "" {
				continue
			}
			for _, each := range []string{path, strings.ToLower(path), path + ".git"} {
				if !slices.Contains(paths, each) && len(paths) < maxPaths {
					paths = append(paths, each)
				}
			}
		}
	}
	return paths, nil
}

// pathOf returns host and path of the address of a repository, "" where modules cannot be
// named so.
func pathOf(address string) string {
	if at := strings.IndexByte(address, '@'); at >= 0 && !strings.Contains(address, "://") { // git@host:path
		address = "ssh://" + strings.Replace(address, ":", "/", 1)
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return ""
	}
	host := u.Hostname()
	if net.ParseIP(host) != nil {
		return ""
	}
	path := strings.ToLower(host) + "/" + strings.TrimSuffix(strings.Trim(u.Path, "/"), ".git")
	if checkPath(path) != nil || !strings.Contains(path, "/") {
		return ""
	}
	return path
}

// checkPath holds a path to what modules can begin with.
func checkPath(path string) error {
	if err := (refresh.Subject{Path: path}).Check(); err != nil {
		return err
	}
	host, _, _ := strings.Cut(path, "/")
	if !strings.Contains(host, ".") {
		return errModule
	}
	return module.CheckImportPath(path)
}

// modulesOf returns the modules that the address of the hook names.
func modulesOf(query url.Values) ([]string, error) {
	all := query["module"]
	if len(all) > maxModules {
		return nil, fmt.Errorf("more than %d times ?module=", maxModules)
	}
	for _, path := range all {
		if checkPath(path) != nil {
			return nil, fmt.Errorf("%w, not %.80q", errModule, path)
		}
	}
	return all, nil
}
