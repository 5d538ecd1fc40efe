// Go-writer puts a Jupiter key for each ready Pod into etcd, under a lease of the Pod, and deletes it when the Pod is
// not ready any more. It is a yardstick, the least that any operator must do: one shared informer, a de-duplicating
// queue, 64 workers, one grant and one put a Pod. It has no owner records, no leader, no sweep, no renewal of leases,
// no pacing and no settings that a benchmark does not need.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
)

const workers = 64

// ServiceInfo is the value of Jupiter 0.2.7, field by field.
type ServiceInfo struct {
	Name       string            `json:"name"`
	AppID      string            `json:"appId"`
	Scheme     string            `json:"scheme"`
	Address    string            `json:"address"`
	Weight     float64           `json:"weight"`
	Enable     bool              `json:"enable"`
	Healthy    bool              `json:"healthy"`
	Metadata   map[string]string `json:"metadata"`
	Region     string            `json:"region"`
	Zone       string            `json:"zone"`
	Kind       uint8             `json:"kind"`
	Deployment string            `json:"deployment"`
	Group      string            `json:"group"`
	Services   map[string]any    `json:"services"`
}

// Writer knows what it has put for which Pod.
type Writer struct {
	etcd      *clientv3.Client
	pods      cache.Store
	nameLabel string
	port      int
	prefix    string
	leaseTTL  int64

	mutex   sync.Mutex
	written map[string]record
}

// A record is what etcd holds for one Pod, or ought to; without a key for a Pod that is not ready. The lease is named for
// the Pod's UID: a Pod of the same name that came later has another.
type record struct {
	uid   types.UID
	key   string
	value string
}

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "the API server's kubeconfig")
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "etcd's endpoints, with commas")
	namespace := flag.String("namespace", "", "the Pods' namespace; empty for all")
	selector := flag.String("selector", "", "the Pods' label selector")
	nameLabel := flag.String("name-label", "app", "the Pod label whose value is the registry's name")
	port := flag.Int("port", 9000, "the port that Pods serve at")
	prefix := flag.String("prefix", "jupiter", "the registry's prefix")
	leaseTTL := flag.Int64("lease-ttl", 300, "seconds")
	flag.Parse()

	etcd, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(*endpoints, ","), Logger: zap.NewNop()})
	check(err)
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	check(err)
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	pods := cache.NewFilteredListWatchFromClient(coreClient(config), "pods", *namespace,
		func(options *metav1.ListOptions) { options.LabelSelector = *selector })
	informer := cache.NewSharedIndexInformer(pods, &corev1.Pod{}, 0, cache.Indexers{})
	writer := &Writer{
		etcd: etcd, pods: informer.GetStore(), nameLabel: *nameLabel, port: *port, prefix: *prefix, leaseTTL: *leaseTTL,
		written: map[string]record{},
	}
	queue := workqueue.NewTyped[string]()
	enqueue := func(object any) {
		key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object)
		check(err)
		queue.Add(key)
	}
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }, DeleteFunc: enqueue,
	})
	check(err)

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	for range workers {
		go writer.work(ctx, queue)
	}
	go informer.Run(ctx.Done())
	cache.WaitForCacheSync(ctx.Done(), informer.HasSynced)
	fmt.Println("synced")
	<-ctx.Done()
}

// coreClient knows the core group alone: the full clientset takes minutes to compile.
func coreClient(config *rest.Config) rest.Interface {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	check(corev1.AddToScheme(scheme))
	config.APIPath, config.GroupVersion, config.QPS = "/api", &corev1.SchemeGroupVersion, -1
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	check(err)
	return client
}

func (w *Writer) work(ctx context.Context, queue workqueue.TypedInterface[string]) {
	for {
		pod, shutdown := queue.Get()
		if shutdown {
			return
		}
		if err := w.reconcile(ctx, pod); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, pod, err)
			queue.Add(pod)
		}
		queue.Done(pod)
	}
}

// reconcile makes etcd hold what the Pod's last known state asks for.
func (w *Writer) reconcile(ctx context.Context, name string) error {
	object, exists, err := w.pods.GetByKey(name)
	if err != nil {
		return err
	}
	wanted := record{}
	if exists {
		wanted = w.desired(object.(*corev1.Pod))
	}
	current := w.current(name)
	if current == wanted || current.uid == "" && wanted.key == "" {
		return nil
	}
	if err := w.apply(ctx, current, wanted); err != nil {
		return err
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.written[name] = wanted; wanted.uid == "" {
		delete(w.written, name)
	}
	return nil
}

func (w *Writer) current(name string) record {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.written[name]
}

// apply deregisters first; a lease is revoked when its Pod is gone for good.
func (w *Writer) apply(ctx context.Context, current, wanted record) error {
	if current.key != "" && current.key != wanted.key {
		if _, err := w.etcd.Delete(ctx, current.key); err != nil {
			return err
		}
	}
	if current.uid != "" && current.uid != wanted.uid {
		if _, err := w.etcd.Revoke(ctx, leaseOf(current.uid)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
	}
	if wanted.key == "" {
		return nil
	}
	if current.uid != wanted.uid {
		if err := w.grant(ctx, leaseOf(wanted.uid)); err != nil && !errors.Is(err, rpctypes.ErrLeaseExist) {
			return err
		}
	}
	_, err := w.etcd.Put(ctx, wanted.key, wanted.value, clientv3.WithLease(leaseOf(wanted.uid)))
	return err
}

// grant asks for a lease with an id of our own, for which clientv3 has no method but its generated client has.
func (w *Writer) grant(ctx context.Context, id clientv3.LeaseID) error {
	_, err := pb.NewLeaseClient(w.etcd.ActiveConnection()).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: w.leaseTTL, ID: int64(id)})
	return rpctypes.Error(err)
}

// desired is the key and value of a ready Pod; without a key for one that is not.
func (w *Writer) desired(pod *corev1.Pod) record {
	if !ready(pod) {
		return record{uid: pod.UID}
	}
	name, address := pod.Labels[w.nameLabel], net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(w.port))
	value, err := json.Marshal(ServiceInfo{
		Name: name, Scheme: "grpc", Address: address, Weight: 100, Enable: true, Healthy: true, Kind: 1,
		Metadata: map[string]string{"jupiterVersion": "0.2.0"},
		Region:   pod.Labels[corev1.LabelTopologyRegion], Zone: pod.Labels[corev1.LabelTopologyZone],
	})
	check(err)
	return record{pod.UID, fmt.Sprintf("/%s/%s/providers/grpc://%s", w.prefix, name, address), string(value)}
}

func ready(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning || pod.Status.PodIP == "" {
		return false
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// leaseOf is a positive 63-bit hash.
func leaseOf(uid types.UID) clientv3.LeaseID {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(uid))
	return clientv3.LeaseID(hash.Sum64()>>1 | 1)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
