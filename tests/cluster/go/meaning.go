package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	policyv1 "k8s.io/api/policy/v1"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured/unstructuredscheme"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/controlplane" // fills the scheme
	"k8s.io/utils/ptr"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// What a whole request means to kube-apiserver: its RequestInfo, the options
// that its handlers read from query and body, and the object or the effect of
// the patch that they read from the body. Each step is the handlers' own
// (k8s.io/apiserver/pkg/endpoints/handlers), with their own decoders; what they
// would refuse is an error here.

// asked is one request. Onto is the object that a patch is laid on.
type asked struct {
	Method      string          `json:"method"`
	URL         string          `json:"url"`
	ContentType *string         `json:"contentType"`
	Body        []byte          `json:"body"` // base64
	Onto        json.RawMessage `json:"onto"`
}

type meant struct {
	Info        json.RawMessage `json:"info"`
	DryRun      []string        `json:"dryRun,omitempty"`
	Propagation string          `json:"propagation,omitempty"`
	Orphan      *bool           `json:"orphan,omitempty"`
	Grace       *int64          `json:"grace,omitempty"`
	UID         string          `json:"uid,omitempty"` // the precondition
	Fields      string          `json:"fields,omitempty"`
	Labels      string          `json:"labels,omitempty"`
	Watch       bool            `json:"watch,omitempty"`
	Object      json.RawMessage `json:"object,omitempty"` // as read, or as patched
}

var kinds = map[string]schema.GroupVersionKind{
	"pods":        {Version: "v1", Kind: "Pod"},
	"secrets":     {Version: "v1", Kind: "Secret"},
	"configmaps":  {Version: "v1", Kind: "ConfigMap"},
	"namespaces":  {Version: "v1", Kind: "Namespace"},
	"services":    {Version: "v1", Kind: "Service"},
	"deployments": {Group: "apps", Version: "v1", Kind: "Deployment"},
	"cronjobs":    {Group: "batch", Version: "v1", Kind: "CronJob"},
}

// meaning answers one line. A panic is an error, as it is in the API server.
func meaning(line []byte) (answered []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			answered, err = nil, fmt.Errorf("panic: %v", r)
		}
	}()
	var ask asked
	if err := json.Unmarshal(line, &ask); err != nil {
		return nil, fmt.Errorf("question: %w", err)
	}
	raw := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", ask.Method, ask.URL)
	req, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)+16))
	if err != nil {
		return nil, fmt.Errorf("request line: %w", err)
	}
	if ask.ContentType != nil {
		req.Header.Set("Content-Type", *ask.ContentType)
	}
	found, err := resolver.NewRequestInfo(req)
	if err != nil {
		return nil, fmt.Errorf("request info: %w", err)
	}
	var answer meant
	if answer.Info, err = infoJSON(found); err != nil {
		return nil, err
	}
	if found.IsResourceRequest {
		if err := answer.read(&ask, req, found); err != nil {
			return nil, err
		}
	}
	return json.Marshal(answer)
}

func (m *meant) read(ask *asked, req *http.Request, info *request.RequestInfo) error {
	switch info.Verb {
	case "list", "watch":
		return m.listOptions(req)
	case "create", "update":
		return m.object(ask, req, info)
	case "delete", "deletecollection":
		return m.deleteOptions(ask, req, info.Verb)
	case "patch":
		return m.patch(ask, req, info)
	}
	return nil
}

// listOptions is handlers/get.go's ListResource.
func (m *meant) listOptions(req *http.Request) error {
	opts := metainternalversion.ListOptions{}
	if err := internalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, &opts); err != nil {
		return err
	}
	m.Watch = opts.Watch
	m.selectors(&opts)
	return nil
}

func (m *meant) selectors(opts *metainternalversion.ListOptions) {
	if opts.FieldSelector != nil {
		m.Fields = opts.FieldSelector.String()
	}
	if opts.LabelSelector != nil {
		m.Labels = opts.LabelSelector.String()
	}
}

// deleteOptions is handlers/delete.go's DeleteResource and DeleteCollection.
func (m *meant) deleteOptions(ask *asked, req *http.Request, verb string) error {
	if verb == "deletecollection" {
		if err := m.listOptions(req); err != nil {
			return err
		}
	}
	options := &metav1.DeleteOptions{}
	if len(ask.Body) > 0 {
		s, err := negotiation.NegotiateInputSerializer(req, false, internalscheme.Codecs)
		if err != nil {
			return err
		}
		gvk := metav1.SchemeGroupVersion.WithKind("DeleteOptions")
		decoder := internalscheme.Codecs.DecoderToVersion(s.Serializer, gvk.GroupVersion())
		object, _, err := decoder.Decode(ask.Body, &gvk, options)
		if err != nil {
			return err
		}
		if object != options {
			return errors.New("not DeleteOptions")
		}
	} else if err := internalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, options); err != nil {
		return err
	}
	options.IgnoreStoreReadErrorWithClusterBreakingPotential = nil
	if errs := validation.ValidateDeleteOptions(options); len(errs) > 0 {
		return errs.ToAggregate()
	}
	m.DryRun, m.Grace, m.Orphan = options.DryRun, options.GracePeriodSeconds, options.OrphanDependents
	m.Propagation = string(ptr.Deref(options.PropagationPolicy, ""))
	if options.Preconditions != nil {
		m.UID = string(ptr.Deref(options.Preconditions.UID, ""))
	}
	return nil
}

// object is handlers/create.go and update.go, up to the decoded object.
func (m *meant) object(ask *asked, req *http.Request, info *request.RequestInfo) error {
	options := &metav1.CreateOptions{} // UpdateOptions has the same fields
	if err := internalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, options); err != nil {
		return err
	}
	if errs := validation.ValidateCreateOptions(options); len(errs) > 0 {
		return errs.ToAggregate()
	}
	m.DryRun = options.DryRun
	if info.Resource == "pods" && info.Subresource == "eviction" && len(ask.Body) > 0 {
		return m.eviction(ask, req)
	}
	if info.Subresource != "" || len(ask.Body) == 0 {
		return nil // each subresource has a type of its own
	}
	gvk, builtin := kinds[info.Resource]
	if !builtin {
		gvk = schema.GroupVersionKind{Group: info.APIGroup, Version: info.APIVersion, Kind: "Gizmo"}
	}
	var codecs runtime.NegotiatedSerializer = customResources{}
	if builtin {
		codecs = legacyscheme.Codecs
	}
	s, err := negotiation.NegotiateInputSerializer(req, false, codecs)
	if err != nil {
		return err
	}
	var into runtime.Object
	if builtin {
		if into, err = legacyscheme.Scheme.New(gvk); err != nil {
			return err
		}
	} else {
		into = &unstructured.Unstructured{}
	}
	decoded, got, err := s.Serializer.Decode(ask.Body, &gvk, into)
	if err != nil {
		return err
	}
	if *got != gvk {
		return fmt.Errorf("another kind: %v", got)
	}
	m.Object, err = json.Marshal(decoded)
	return err
}

// eviction is pkg/registry/core/pod/storage/eviction.go, propagateDryRun.
func (m *meant) eviction(ask *asked, req *http.Request) error {
	s, err := negotiation.NegotiateInputSerializer(req, false, legacyscheme.Codecs)
	if err != nil {
		return err
	}
	gvk, eviction := policyv1.SchemeGroupVersion.WithKind("Eviction"), &policyv1.Eviction{}
	decoded, _, err := s.Serializer.Decode(ask.Body, &gvk, eviction)
	if err != nil {
		return err
	}
	if decoded != eviction {
		return errors.New("no Eviction")
	}
	if inner := eviction.DeleteOptions; inner != nil && len(inner.DryRun) > 0 {
		if errs := validation.ValidateDryRun(nil, inner.DryRun); len(errs) > 0 {
			return errs.ToAggregate()
		}
		if len(m.DryRun) > 0 && !slices.Equal(m.DryRun, inner.DryRun) {
			return errors.New("two dry runs")
		}
		m.DryRun = inner.DryRun
	}
	return nil
}

// customResources reads as the handlers of custom resources do
// (apiextensions-apiserver/pkg/apiserver/customresource_handler.go).
type customResources struct{ runtime.NegotiatedSerializer }

func (customResources) SupportedMediaTypes() []runtime.SerializerInfo {
	creator, typer := unstructuredscheme.NewUnstructuredCreator(), unstructuredscheme.NewUnstructuredObjectTyper()
	of := func(yaml bool) runtime.Serializer {
		return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, creator, typer,
			jsonserializer.SerializerOptions{Yaml: yaml})
	}
	return []runtime.SerializerInfo{
		{MediaType: "application/json", MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true, Serializer: of(false)},
		{MediaType: "application/yaml", MediaTypeType: "application", MediaTypeSubType: "yaml", EncodesAsText: true, Serializer: of(true)},
	}
}

// patch is handlers/patch.go, up to the patched object, which is not validated.
func (m *meant) patch(ask *asked, req *http.Request, info *request.RequestInfo) error {
	contentType := req.Header.Get("Content-Type")
	if i := strings.Index(contentType, ";"); i > 0 {
		contentType = contentType[:i]
	}
	patchType := types.PatchType(contentType)
	switch patchType {
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType, types.ApplyYAMLPatchType:
	default:
		return fmt.Errorf("no patch type: %q", contentType)
	}
	options := &metav1.PatchOptions{}
	if err := internalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, options); err != nil {
		return err
	}
	m.DryRun = options.DryRun
	if errs := validation.ValidateDryRun(nil, options.DryRun); len(errs) > 0 {
		return errs.ToAggregate()
	}
	if info.Subresource != "" || len(ask.Onto) == 0 {
		return nil
	}
	var err error
	m.Object, err = patched(patchType, ask.Body, ask.Onto, kinds[info.Resource])
	return err
}

func patched(kind types.PatchType, patch, onto []byte, gvk schema.GroupVersionKind) ([]byte, error) {
	switch kind {
	case types.JSONPatchType:
		operations, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			return nil, err
		}
		return operations.Apply(onto)
	case types.MergePatchType:
		return jsonpatch.MergePatch(onto, patch)
	case types.StrategicMergePatchType:
		var original, change map[string]any
		if err := kjson.UnmarshalCaseSensitivePreserveInts(onto, &original); err != nil {
			return nil, err
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(patch, &change); err != nil {
			return nil, err
		}
		like, err := legacyscheme.Scheme.New(gvk)
		if err != nil {
			return nil, err
		}
		merged, err := strategicpatch.StrategicMergeMapPatch(original, change, like)
		if err != nil {
			return nil, err
		}
		return json.Marshal(merged)
	}
	// Server-side apply: what is merged is decided by the field manager; this is what it is given.
	applied := map[string]any{}
	if err := yaml.Unmarshal(patch, &applied); err != nil {
		return nil, err
	}
	return json.Marshal(applied)
}
