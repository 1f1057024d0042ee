// The training panel on the node that trains, and what is said when a training ends. A node that never trained has no panel, and
// nothing of a panel is saved with a workflow.
import { forwardToCanvas, hosted } from '../shared/dom_widget.mjs'
import { TRAIN } from '../shared/kinds.mjs'
import { openTrainings } from './trainings.mjs'
import { TrainingView } from './view.mjs'

export function panels({ app, api, t }) {
  const trainings = openTrainings({ api, t })
  const shown = new WeakMap() // node -> its panel

  function show(training) {
    if (training.workflow !== app.rootGraph.id) return
    const node = nodeAt(app.rootGraph, training.node)
    if (node?.type !== TRAIN) return
    if (!shown.has(node)) shown.set(node, addPanel(node))
    shown.get(node).show(training)
  }

  function addPanel(node) {
    const view = new TrainingView({ t, trainings })
    forwardToCanvas(view.element, app)
    view.room = hosted(app, node, 'seqlora_training', view.element)
    return view
  }

  // Of what failed the host tells, and of what was found again there is nothing to tell.
  function announce(training) {
    const { openWorkflows } = app.extensionManager.workflow
    const isOurs = openWorkflows.some(({ activeState }) => activeState?.id === training.workflow)
    if (training.phase !== 'finished' || training.reused || !(isOurs || training.workflow === app.rootGraph.id)) return
    app.extensionManager.toast.add({
      severity: 'success', summary: t('panel.toast', training), detail: t('panel.ended.finished', training), life: 8_000
    })
  }

  trainings.onChange((training, hasEnded) => {
    show(training)
    if (hasEnded) announce(training)
  })

  return {
    setup: () => trainings.start(),
    afterConfigureGraph: () => trainings.all().forEach(show)
  }
}

// The node at the end of a path such as "12:5": node 5 inside of the subgraph that node 12 of the root graph stands for.
function nodeAt(graph, path) {
  const ids = path.split(':')
  const last = ids.pop()
  for (const id of ids) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(last)
}
