package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// apiServer is a stand-in for the API server, as far as a kubelet with pods needs one:
// it keeps objects in memory and serves get, watch, create, update, patch and delete
// of them, in JSON by plain HTTP. (kubelet lists by watches that begin with all that
// is there.) There is one node, and all pods are bound to it, so that selectors select
// everything. Of what else makes a cluster nothing is there: no defaults and no
// checks, no authentication, no scheduler, no controllers. Pods come complete, from
// create.
type apiServer struct {
	*httptest.Server
	t testing.TB

	mu      sync.Mutex
	objects map[string]*unstructured.Unstructured // by URL path; replaced, never changed
	changes []change                              // those of all times; the resource version is their number
	more    chan struct{}                         // closed by the next change
}

type change struct {
	path string
	watchEvent
}

// watchEvent is metav1.WatchEvent with an object that is not yet encoded.
type watchEvent struct {
	Type   string                     `json:"type"`
	Object *unstructured.Unstructured `json:"object"`
}

// kinds are those of collections that kubelet watches: what tells it that it has seen
// all that is there is an empty object of this kind.
var kinds = map[string]string{
	"/api/v1/nodes":                       "Node",
	"/api/v1/pods":                        "Pod",
	"/api/v1/services":                    "Service",
	"/apis/node.k8s.io/v1/runtimeclasses": "RuntimeClass",
	"/apis/storage.k8s.io/v1/csidrivers":  "CSIDriver",
}

// newAPIServer serves until t ends.
func newAPIServer(t testing.TB) *apiServer {
	a := &apiServer{t: t, objects: map[string]*unstructured.Unstructured{}, more: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// kubeconfig is a file for kubelet's --kubeconfig.
func (a *apiServer) kubeconfig() string {
	return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": [{"name": "test", "cluster": {"server": %q}}],
		"contexts": [{"name": "test", "context": {"cluster": "test"}}]}`, a.URL)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // who asks has gone
	}
	if r.Method == http.MethodGet && r.URL.Query().Get("watch") != "" {
		a.watch(w, r)
		return
	}
	a.mu.Lock()
	answer, code, err := a.answer(r.Method, r.URL.Path, body)
	a.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(answer)
}

// answer does what a request asks for, but watch, under the lock.
func (a *apiServer) answer(method, at string, body []byte) (any, int, error) {
	// The status is a part of the object; of other parts there is none here.
	at = strings.TrimSuffix(at, "/status")
	old := a.objects[at]
	sent := &unstructured.Unstructured{}
	if len(body) > 0 {
		if err := utiljson.Unmarshal(body, &sent.Object); err != nil {
			return nil, http.StatusBadRequest, err
		}
	}
	switch {
	case method == http.MethodPost:
		at = path.Join(at, sent.GetName())
		if a.objects[at] != nil {
			return nil, http.StatusConflict, fmt.Errorf("%s exists", at)
		}
		sent.SetUID(types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012d", len(a.changes))))
		sent.SetCreationTimestamp(metav1.Now())
		return a.record("ADDED", at, sent), http.StatusCreated, nil
	case old == nil:
		return nil, http.StatusNotFound, fmt.Errorf("no %s", at)
	case method == http.MethodGet:
		return old, http.StatusOK, nil
	case method == http.MethodPut:
		return a.record("MODIFIED", at, sent), http.StatusOK, nil
	case method == http.MethodPatch:
		patched := &unstructured.Unstructured{Object: merge(old.Object, sent.Object)}
		return a.record("MODIFIED", at, patched), http.StatusOK, nil
	case method == http.MethodDelete:
		return a.delete(at, old, sent), http.StatusOK, nil
	}
	return nil, http.StatusMethodNotAllowed, errors.New(method)
}

// record makes o the object at a path, or the last that was there.
func (a *apiServer) record(kind, at string, o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	a.objects[at] = o
	if kind == "DELETED" {
		delete(a.objects, at)
	}
	a.changes = append(a.changes, change{at, watchEvent{kind, o}})
	o.SetResourceVersion(strconv.Itoa(len(a.changes)))
	close(a.more)
	a.more = make(chan struct{})
	return o
}

// delete removes an object, but of a pod that may run it asks kubelet to end it. Who
// says a grace period is kubelet, when the pod has ended, and the period is 0.
func (a *apiServer) delete(at string, old, options *unstructured.Unstructured) *unstructured.Unstructured {
	phase, _, _ := unstructured.NestedString(old.Object, "status", "phase")
	over := phase == string(corev1.PodFailed) || phase == string(corev1.PodSucceeded)
	if _, given := options.Object["gracePeriodSeconds"]; given || over || old.GetKind() != "Pod" {
		return a.record("DELETED", at, old)
	}
	old = old.DeepCopy()
	grace, _, _ := unstructured.NestedInt64(old.Object, "spec", "terminationGracePeriodSeconds")
	now := metav1.Now()
	old.SetDeletionTimestamp(&now)
	old.SetDeletionGracePeriodSeconds(&grace)
	return a.record("MODIFIED", at, old)
}

// watch sends what has changed since a resource version, and goes on. With
// sendInitialEvents these are all changes that ever were, which lead to what is
// there, and a mark that this was all.
func (a *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	collection, initial := r.URL.Path, r.URL.Query().Get("sendInitialEvents") == "true"
	seen := 0
	if !initial {
		seen, _ = strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	}
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	for r.Context().Err() == nil {
		a.mu.Lock()
		news, more := a.changes[seen:], a.more
		a.mu.Unlock()
		for _, c := range news {
			if within(c.path, collection) {
				_ = out.Encode(c.watchEvent)
			}
		}
		seen += len(news)
		if initial {
			_ = out.Encode(endOfInitial(collection, seen))
			initial = false
		}
		w.(http.Flusher).Flush()
		select {
		case <-more:
		case <-r.Context().Done():
		}
	}
}

func endOfInitial(collection string, version int) watchEvent {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	_, apiVersion, _ := strings.Cut(path.Dir(collection)[1:], "/") // after api or apis
	o.SetAPIVersion(apiVersion)
	o.SetKind(kinds[collection])
	o.SetResourceVersion(strconv.Itoa(version))
	o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return watchEvent{"BOOKMARK", o}
}

// within reports whether an object is of a collection: of one namespace or of all.
func within(object, collection string) bool {
	dir, resource := path.Dir(object), path.Base(collection)
	return dir == collection || path.Base(dir) == resource && strings.HasPrefix(object, path.Dir(collection)+"/namespaces/")
}

// get decodes an object that is there.
func (a *apiServer) get(at string, into any) error {
	a.mu.Lock()
	o := a.objects[at]
	a.mu.Unlock()
	if o == nil {
		return fmt.Errorf("the API server has no %s", at)
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into)
}

const podsPath = "/api/v1/namespaces/" + namespace + "/pods"

func podPath(name string) string { return podsPath + "/" + name + "-" + nodeName }

// create gives kubelet a pod, named as it names those of files, with what the API
// server sets where nothing is said, and a grace period of a second.
func (a *apiServer) create(name string, spec corev1.PodSpec) {
	a.t.Helper()
	no, grace := false, int64(1)
	spec.NodeName, spec.RestartPolicy, spec.DNSPolicy = nodeName, corev1.RestartPolicyAlways, corev1.DNSClusterFirst
	spec.EnableServiceLinks, spec.AutomountServiceAccountToken = &no, &no
	spec.TerminationGracePeriodSeconds, spec.SecurityContext = &grace, &corev1.PodSecurityContext{}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.ImagePullPolicy = corev1.PullIfNotPresent
		c.TerminationMessagePath, c.TerminationMessagePolicy = corev1.TerminationMessagePathDefault, corev1.TerminationMessageReadFile
	}
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name + "-" + nodeName, Namespace: namespace, Generation: 1},
		Spec:       spec,
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.send(http.MethodPost, podsPath, &pod)
}

// change gives kubelet another spec of a pod.
func (a *apiServer) change(name string, f func(*corev1.PodSpec)) {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var pod corev1.Pod
	at := podPath(name)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(a.objects[at].Object, &pod); err != nil {
		a.t.Fatal(err)
	}
	f(&pod.Spec)
	pod.Generation++
	a.send(http.MethodPut, at, &pod)
}

// send makes a request of the test's, under the lock.
func (a *apiServer) send(method, at string, pod *corev1.Pod) {
	a.t.Helper()
	body, err := json.Marshal(pod)
	if err == nil {
		_, _, err = a.answer(method, at, body)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// pod is what kubelet has told of a pod, of a static one by its mirror.
func (a *apiServer) pod(name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	return &pod, a.get(podPath(name), &pod)
}

// deletePods asks kubelet to end the pods that are there, but for mirrors of static ones.
func (a *apiServer) deletePods() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at, o := range a.objects {
		if o.GetKind() == "Pod" && o.GetAnnotations()[corev1.MirrorPodAnnotationKey] == "" {
			a.delete(at, o, &unstructured.Unstructured{})
		}
	}
}

// connect gives kubelet an API server from its next start on.
func (k *kubelet) connect() {
	k.api = newAPIServer(k.t)
	k.config["contentType"] = "application/json"
	k.WriteFile(k.path("kubeconfig"), k.api.kubeconfig())
	k.flags = append(k.flags, "--kubeconfig", k.path("kubeconfig"))
	k.saveConfig()
}
