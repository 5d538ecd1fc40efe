-- Health of a GrpcService for Argo CD: resource.customizations.health.grpc-etcd.dev_GrpcService in the ConfigMap argocd-cm.
local function find(kind)
  for _, condition in ipairs(obj.status and obj.status.conditions or {}) do
    if condition.type == kind then return condition end
  end
end

if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to see this generation"}
end
local ready, stalled = find("Ready"), find("Stalled")
if stalled ~= nil and stalled.status == "True" then
  return {status = "Degraded", message = stalled.reason .. ": " .. stalled.message}
end
if ready == nil then
  return {status = "Progressing", message = "waiting for the condition Ready"}
end
if ready.status == "True" then
  return {status = "Healthy", message = ready.message}
end
return {status = "Progressing", message = ready.reason .. ": " .. ready.message}
